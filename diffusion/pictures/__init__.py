"""8-bit images, grids, PNG files, films, and figures of sweeps."""

from diffusion.pictures.eight_bit import to_uint8
from diffusion.pictures.film import check_film, save_film
from diffusion.pictures.frames import abreast, spread
from diffusion.pictures.grid import enlarge, grid, pillow, save_png
from diffusion.pictures.sweeps import blank, quality_plot, sampled, scale_plot

__all__ = [
    "abreast", "blank", "check_film", "enlarge", "grid", "pillow", "quality_plot", "sampled", "save_film", "save_png",
    "scale_plot", "spread", "to_uint8",
]  # fmt: skip
