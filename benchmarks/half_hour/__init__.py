"""Parts of benchmarks/gpu_half_hour.py: the plan, its steps, and what is brought home."""
