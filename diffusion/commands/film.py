"""`diffusion film`: a film of the way from noise to pictures."""

from diffusion import pictures
from diffusion.options.common import check_writable, open_run, sampling_parser
from diffusion.training.callbacks.pictures import denoising


def main(argv: list[str]) -> int:
    parser = sampling_parser("film", "Film the denoising of a few pictures.", 9, "denoising.gif")
    parser.add_argument("--frames", type=int, default=40, help="frames from noise to picture (default 40)")
    parser.add_argument("--hold", type=float, default=2.0, help="seconds that the last frame stays (default 2)")
    parser.add_argument("--fps", type=float, default=15.0, help="frames per second (default 15; a GIF at most 50)")
    parser.add_argument("--size", type=int, default=0, help="pixels of one picture, rounded to a whole enlargement")
    args, model, sampler, guidance = open_run(parser, argv)
    if args.frames < 2 or args.size < 0:
        raise ValueError(f"--frames must be at least 2 and --size at least 0, got {args.frames} and {args.size}")
    pictures.check_film(args.out, args.fps, args.hold)
    check_writable(args.out)
    scale = max(1, round(args.size / model.shape[2])) if args.size else None
    columns = args.across if args.each else None
    frames = denoising(
        model, args.n, None, args.frames, args.seed, scale, columns, args.given, sampler=sampler, guidance=guidance
    )
    pictures.save_film(frames, args.out, args.fps, args.hold)
    height, width = frames[0].shape[:2]
    print(
        f"{args.out}: {len(frames)} frames of {width}x{height} pixels, {args.out.stat().st_size / 1024:,.0f} KB, "
        f"{type(sampler).__name__} {sampler.steps} steps, {args.weights} weights, seed {args.seed}"
    )
    return 0
