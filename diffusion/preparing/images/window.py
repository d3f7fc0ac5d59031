"""Which part of a picture is used, and where it goes in the stored image."""

from diffusion.preparing.settings import Form


class Window:
    """Which part of a picture is used, and where it goes.

    Args:
        size: upright (width, height) of the whole picture.
        form: of the stored image.
        crop: "center", "random", "none" or "pad".
        at: position of a random crop, two numbers in [0, 1).
    """

    def __init__(self, size: tuple[int, int], form: Form, crop: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        (w, h), W, H = size, form.width, form.height
        self.whole = size
        self.box = (0.0, 0.0, float(w), float(h))  # of the picture
        self.inner = (W, H)  # where it goes, from `corner`
        self.corner = (0, 0)
        if crop == "pad":
            scale = min(W / w, H / h)
            self.inner = max(1, min(W, round(w * scale))), max(1, min(H, round(h * scale)))
            self.corner = (W - self.inner[0]) // 2, (H - self.inner[1]) // 2
            self.enlarged = scale
        elif crop == "none":
            self.enlarged = max(W / w, H / h)
        else:
            scale = self.enlarged = max(W / w, H / h)
            width, height = min(w, W / scale), min(h, H / scale)
            u, v = at if crop == "random" else (0.5, 0.5)
            left, top = (w - width) * u, (h - height) * v
            if scale == 1:  # whole pixels: a copy, without resampling
                left, top, width, height = int(left), int(top), W, H
            self.box = (left, top, left + width, top + height)
        self.exact = (self.box[2] - self.box[0], self.box[3] - self.box[1]) == self.inner and all(
            float(b).is_integer() for b in self.box
        )

    def within(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The box in a copy of the picture that was reduced to (width, height)."""
        x, y = size[0] / self.whole[0], size[1] / self.whole[1]
        left, top, right, bottom = self.box
        return max(0.0, left * x), max(0.0, top * y), min(float(size[0]), right * x), min(float(size[1]), bottom * y)


def reduced(size: tuple[int, int], form: Form, crop: str) -> tuple[float, float]:
    """The (width, height) that a whole picture has once the part of it in use has its size in the form."""
    window = Window(size, form, crop)
    left, top, right, bottom = window.box
    return size[0] * window.inner[0] / (right - left), size[1] * window.inner[1] / (bottom - top)
