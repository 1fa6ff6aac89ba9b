"""A toy benchmark, as somebody would add it: this file, and one line in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.evaluation.benchmarks.base import IMAGES, UP, Benchmark, ImageTitle, Metric, Outcome

if TYPE_CHECKING:
    from trainer.evaluation.task import Task


class Brightness(Benchmark):
    """How bright held-out images are."""

    title = "Brightness"
    detail = "of held-out images"
    summary = "how bright held-out images are"
    network_kinds = ("addp",)
    options = IMAGES
    metrics: ClassVar = {
        "bright": Metric("bright images", UP, "%", counted_by="images"),
        "mean": Metric("mean brightness", UP, "grey levels"),
        "images": Metric("images that were looked at", plotted=False),
    }
    images: ClassVar = {"first": ImageTitle("The first images", "As they are.")}

    def run(self, task: Task) -> Outcome:
        from data_pipeline.images.image_grid import image_grid
        from trainer.evaluation.measures.grids import png, zoom_of

        crops = task.crops("val")
        means = task.over_images(
            "images", crops, lambda chunk: chunk.pixels.float().mean((1, 2, 3)).tolist()
        )
        if task.collectives.rank:
            return Outcome({})
        values = [value for chunk in means for value in chunk]
        metrics = {
            "bright": sum(value > 127 for value in values) / len(values),
            "mean": sum(values) / len(values),
            "images": len(values),
        }
        shown = crops.read(0).pixels[:4].float() / 255
        return Outcome(metrics, {"first": png(image_grid(shown, 4, zoom_of(task.image_size)))})
