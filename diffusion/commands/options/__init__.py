"""Options: command-line words as arguments of classes, conditions and images."""
