"""Classifiers: the paper's architectures, checkpoint files, the probe of a model, and faster copies.

``zskd_fast.models:LeNet5`` is how the command line names an architecture of the paper.
"""

from zskd_fast.models.architectures import AlexNet, AlexNetHalf, LeNet5, LeNet5Half, ResNet8, ResNet20, ResNet20Half

__all__ = ["AlexNet", "AlexNetHalf", "LeNet5", "LeNet5Half", "ResNet8", "ResNet20", "ResNet20Half"]
