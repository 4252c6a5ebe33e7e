"""Installs the library, its dependencies and the console script `keypoint-detection`."""

from setuptools import find_packages, setup

setup(
    name="keypoint_detection",
    version="0.1.0",
    packages=find_packages(include=["keypoint_detection", "keypoint_detection.*"]),
    install_requires=["torch", "torchvision", "pytorch-lightning"],
    entry_points={"console_scripts": ["keypoint-detection=keypoint_detection.cli:main"]},
)
