"""Inputs that many published teachers share, by name."""

from zskd_fast.config.input_spec import InputSpec

INPUT_PRESETS = {
    "imagenet": InputSpec((3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "cifar10": InputSpec((3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "mnist": InputSpec((1, 28, 28), mean=(0.1307,), std=(0.3081,)),
    "unit": InputSpec((3, 32, 32)),
    "signed": InputSpec((3, 32, 32), valid_range=(-1.0, 1.0)),
}
"""imagenet (torchvision's numbers), cifar10, mnist: raw values from 0 to 1, normalized with mean and deviation of the
training set. unit (0 to 1) and signed (-1 to 1): raw values without normalization; their shape is only a default."""
