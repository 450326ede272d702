"""What torchvision and Pillow make of image files: the whole pre-training views of ImageNet.

    python views_of_files.py < CASES

Reads one JSON object a line, {"file", "params", "size"}, params as in the goldens of augmentation, and answers each with a
line: the sha256 of the view's bytes, C x H x W."""

import hashlib
import json
import sys

from PIL import Image

from augment_goldens import apply_view, to_bytes


def main() -> None:
    for line in sys.stdin:
        case = json.loads(line)
        image = Image.open(case["file"]).convert("RGB")
        print(hashlib.sha256(to_bytes(apply_view(image, case["params"], case["size"]))).hexdigest())


if __name__ == "__main__":
    main()
