"""Installs the library, its dependencies and the console script `keypoint-detection`.

`environment.yaml` asks for the same packages; a test compares the two.
"""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.7",
    "torchvision>=0.22",
    "pytorch-lightning>=2.6",
    "torchmetrics>=1.6",
    "wandb>=0.30",
    "jsonargparse[signatures]>=4.51",
    "numpy>=1.26",
    "scikit-image>=0.22",
    "pillow>=10.1",
    "matplotlib>=3.8",
    "pyyaml>=6.0",
    "tqdm>=4.66",
]

ENCODERS = ["segmentation-models-pytorch>=0.5"]
FAST = ["orjson>=3.9"]
EXPORT = ["torch>=2.10", "onnx>=1.17", "onnxruntime>=1.22", "onnxscript>=0.7"]
SAFETENSORS = ["safetensors>=0.4"]
SWEEP = ["optuna>=4.9", "pg8000>=1.31"]
VIDEO = ["imageio[ffmpeg]>=2.34"]
TEST = [
    "pytest>=8.0",
    "setuptools>=64",
    "hypothesis>=6.100",
    "playwright>=1.44",
    *ENCODERS,
    *FAST,
    *EXPORT,
    *SAFETENSORS,
    *SWEEP,
    *VIDEO,
]
DEV = [*TEST, "ruff>=0.9", "pre-commit>=3.7"]

setup(
    name="keypoint_detection",
    version="0.1.0",
    description="Train a 2D keypoint detector from a JSON file and a folder of images, watch it learn, and use it.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["keypoint_detection", "keypoint_detection.*"]),
    package_data={"keypoint_detection": ["py.typed", "**/*.yaml", "**/*.html", "**/*.css", "**/*.js"]},
    install_requires=CORE,
    extras_require={
        "encoders": ENCODERS,
        "fast": FAST,
        "export": EXPORT,
        "safetensors": SAFETENSORS,
        "sweep": SWEEP,
        "video": VIDEO,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["keypoint-detection=keypoint_detection.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
