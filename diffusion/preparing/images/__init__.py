"""One image: decoded, converted, resized, marked."""
