"""The paper's recipe against ours: same teacher, data, draws, seed and number of steps; distances at equal n.

    python benchmarks/recipes.py --steps 300 --output_dir runs/recipes

Prints one row a recipe (distance to the data and to the teacher, seconds) and the ratio to the first row.
"""

import argparse
import time

from ddpm_redistill import DistillConfig, TrainingConfig, distill, evaluate

RECIPES = ("redistill", "default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="builtin:digits")
    parser.add_argument("--data", default="builtin:digits")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--sampling_steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="runs/recipes")
    arguments = parser.parse_args()

    rows = []
    for recipe in RECIPES:
        folder = f"{arguments.output_dir}/{recipe}"
        training = TrainingConfig(
            steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            warmup_steps=30,
            ema_decay=0.99,
            sample_every=0,
            checkpoint_every=arguments.steps,
        )
        config = DistillConfig(
            teacher=arguments.teacher,
            data=arguments.data,
            output_dir=folder,
            recipe=recipe,
            training=training,
            seed=arguments.seed,
        )
        started = time.perf_counter()
        student = distill(config)
        seconds = time.perf_counter() - started
        report = evaluate(
            str(student),
            teacher=arguments.teacher,
            data=arguments.data,
            num_images=arguments.num_images,
            steps=arguments.sampling_steps,
            output_dir=folder,
        )
        rows.append((recipe, seconds, report["distances"]))

    metric = next(iter(rows[0][2]["student_to_data"]))
    first = rows[0][2]["student_to_data"][metric]
    print(f"{metric}, {arguments.steps} steps, {arguments.num_images} images, {arguments.sampling_steps} DDIM steps")
    print(f"{'':<20}{'to data':>10}{'to teacher':>12}{'seconds':>9}{'to data / redistill':>21}")
    print(f"{'teacher':<20}{rows[0][2]['teacher_to_data'][metric]:>10.1f}")
    for recipe, seconds, distances in rows:
        to_data, to_teacher = distances["student_to_data"][metric], distances["student_to_teacher"][metric]
        print(f"{recipe:<20}{to_data:>10.1f}{to_teacher:>12.1f}{seconds:>9.0f}{to_data / first:>20.2f}x")


if __name__ == "__main__":
    main()
