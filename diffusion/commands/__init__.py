"""The commands of `diffusion`, a module each with main(argv); imported only when asked for."""
