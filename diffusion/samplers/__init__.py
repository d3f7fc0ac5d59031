"""Samplers: one step takes x from one level to the next. Steps depend on levels and predictions only."""

from diffusion.samplers.annealed_langevin import AnnealedLangevin
from diffusion.samplers.base import Frame, Sampler
from diffusion.samplers.consistency import Consistency
from diffusion.samplers.ddim import DDIM
from diffusion.samplers.ddpm import DDPM
from diffusion.samplers.deis import DEIS
from diffusion.samplers.dpm2 import DPM2
from diffusion.samplers.dpm_solver import DPMSolver
from diffusion.samplers.dpm_solver_single import DPMSolverSingle
from diffusion.samplers.euler import Euler
from diffusion.samplers.euler_ancestral import EulerAncestral
from diffusion.samplers.euler_maruyama import EulerMaruyama
from diffusion.samplers.heun import Heun
from diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion.samplers.probability_flow import ProbabilityFlow
from diffusion.samplers.unipc import UniPC

__all__ = [
    "AnnealedLangevin", "Consistency", "DDIM", "DDPM", "DEIS", "DPM2", "DPMSolver", "DPMSolverSingle", "Euler",
    "EulerAncestral", "EulerMaruyama", "Frame", "Heun", "PredictorCorrector", "ProbabilityFlow", "Sampler", "UniPC",
]  # fmt: skip
