"""`python -m keypoint_detection.data.boxes --count 1000 --image_size 256 --output DIR --seed 0`."""

if __name__ == "__main__":
    import sys

    from keypoint_detection.cli import run

    sys.exit(run("keypoint_detection.boxes_command", sys.argv[1:]))
