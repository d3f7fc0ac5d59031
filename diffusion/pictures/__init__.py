"""8-bit images, bands, grids, PNG files, films, and figures of sweeps."""

from diffusion.pictures.bands import alike, bands_of, visible
from diffusion.pictures.deep import save_deep
from diffusion.pictures.eight_bit import to_uint8
from diffusion.pictures.film import check_film, save_film
from diffusion.pictures.frames import abreast, spread
from diffusion.pictures.grid import enlarge, grid, pillow, save_png
from diffusion.pictures.sweeps import blank, quality_plot, sampled, scale_plot

__all__ = [
    "abreast", "alike", "bands_of", "blank", "check_film", "enlarge", "grid", "pillow", "quality_plot", "sampled",
    "save_deep", "save_film", "save_png", "scale_plot", "spread", "to_uint8", "visible",
]  # fmt: skip
