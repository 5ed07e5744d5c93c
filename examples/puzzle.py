"""Train a small maze solver, evaluate it by depth, and solve one maze.

python examples/puzzle.py --num-steps 4000
"""

import argparse

import attractor
from attractor import recipes
from attractor.data import maze

MAZE = """
###########
#S  #     #
# # # ### #
# #   # # #
# ##### # #
# #     # #
# # ##### #
# #     # #
# ##### # #
#       #G#
###########
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=4000)
    parser.add_argument("--num-puzzles", type=int, default=1000)
    parser.add_argument("--out", default="runs/example-maze")
    options = parser.parse_args()

    # The recipe of the demo, for a number of steps instead of four minutes: mazes of random walls, 16×16.
    settings = {"train.seconds": None, "train.num_steps": options.num_steps, "data.num_puzzles": options.num_puzzles}
    recipe = recipes.override(recipes.get("maze"), settings)
    trained = attractor.train(recipe, out=options.out, overwrite=True, progress=False)

    # Unseen mazes of another kind, also larger ones: depth is a budget that is chosen at test time.
    for size in (11, 21):
        unseen = maze.generate(16, size, seed=1)
        figures = attractor.evaluate(trained, unseen, depths=(16, 32, 64, 128))
        exact = figures["results"]["exact_by_residual"][0]
        print(f"{size}×{size}, exact by depth 16, 32, 64, 128: {exact}")

    [solved] = trained.solve(MAZE, tolerance=1e-3, max_evaluations=512)
    print(trained.puzzle.render(solved.answer))
    print(f"{solved.verdict}; residual {solved.residual:.1e} after {solved.evaluations} evaluations")


if __name__ == "__main__":
    main()
