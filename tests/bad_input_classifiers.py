"""Mistakes with classifiers: rows of ``test_bad_inputs.py``."""

from bad_input_helpers import Row


def classifier_rows() -> list[Row]:
    classifier, needed = "{place}/classifier", "is a classifier: a DDPM is needed here"
    teach = "teach --architecture wrn:10-1 --data {place}/labelled.npz --image_size 16 --channels 1 --output_dir {out}"
    distill = f"distill --teacher {classifier} --data {{place}}/labelled.npz --output_dir {{out}}"
    evaluate = f"evaluate {classifier} --data {{place}}/labelled.npz"
    return [
        Row("samples of a classifier", f"sample {classifier} --output {{out}}", needed),
        Row("samples of a named classifier", "sample timm:resnet18 --output {out}", needed),
        Row("a classifier beside a DDPM", f"evaluate {{place}}/teacher --teacher {classifier}", needed),
        Row(
            "a classifier without weights", evaluate.replace("/classifier", "/weightless"), "has no weights: model.saf"
        ),
        Row(
            "pickled weights of a classifier",
            evaluate.replace("/classifier", "/pickled_classifier"),
            "has only pickled weights (pytorch_model.bin)",
        ),
        Row("torn weights of a classifier", evaluate.replace("/classifier", "/torn_classifier"), "cannot be loaded"),
        Row(
            "a classifier without a shard",
            evaluate.replace("/classifier", "/sharded_classifier"),
            "model-00001-of-00001.safetensors is missing in",
        ),
        Row("a DDPM beside a classifier", f"{evaluate} --teacher {{place}}/teacher", "is no classifier"),
        Row("a network of a DDPM beside a classifier", f"{evaluate} --teacher {{place}}/teacher/unet", "of diffusers"),
        Row("a classifier that starts as a DDPM", f"{teach} --start {{place}}/teacher", "is no classifier"),
        Row(
            "a DDPM that starts as a classifier",
            f"teach --data {{data}} --start {classifier} --output_dir {{out}}",
            needed,
        ),
        Row("steps of a classifier", f"{evaluate} --steps 10", "--steps is for DDPMs, which are sampled"),
        Row("an extractor for a classifier", f"{evaluate} --extractor a:B", "--extractor is for DDPMs"),
        Row("a classifier without data", f"evaluate {classifier}", "give --data, a source of labelled images"),
        Row("a classifier measured without labels", f"evaluate {classifier} --data {{data}}", "have no labels"),
        Row(
            "a classifier that learns without labels", teach.replace("{place}/labelled.npz", "{data}"), "have no labels"
        ),
        Row(
            "a student of a classifier without labels",
            distill.replace("{place}/labelled.npz", "{data}"),
            "have no labels",
        ),
        Row("classes that differ", distill.replace("labelled", "four_classes"), "and names none, and"),
        Row("classes measured that differ", evaluate.replace("labelled", "four_classes"), "and names none, and"),
        Row("an unknown timm network", "plan timm:resnet1818", "timm has no network resnet1818: near it are"),
        Row(
            "a network of a family that is not installed",
            "plan no_family:16",
            "of no family of networks that is installed",
        ),
        Row(
            "a network to teach of a family that is not installed",
            teach.replace("wrn:10-1", "no_family:16"),
            "FAMILY:NAME of an installed family",
        ),
        Row("a network of no such depth", "plan wrn:11-1", "is no wide residual network"),
        Row("an image too small for the strides", "plan timm:resnet18 --image_size 4 --reduction 8", "timm:resnet18"),
        Row("a wider student of a classifier", f"{distill} --student.widen [1,2,2]", "widen"),
        Row(
            "a cheap convolution that is none", f"{distill} --student.cheap Conv3x3", "'Conv3x3' is no convolution that"
        ),
        Row(
            "groups that do not divide", f"{distill} --student.cheap G5B2", "channels are not divided into groups of 5"
        ),
        Row(
            "kinds for other levels",
            f"{distill} --student.cheap [S,DConv]",
            "has 2 kinds: give one for all, or one for",
        ),
        Row("as large maps and full convolutions", f"{distill} --student.reduction 1", "reduction 1 is not supported"),
        Row("a norm of no cheap convolution", f"{distill} --student.cheap_norm group", "and no convolution is cheap"),
        Row(
            "moonshine without cheap convolutions",
            f"{distill} --recipe moonshine",
            "is of cheap convolutions: set stud",
        ),
        Row(
            "RED blocks at reduction 1",
            f"{distill} --student.cheap DConv --student.reduction 1 --student.red_placement full",
            "a student of reduction 1 has the RED blocks of its teacher",
        ),
        Row(
            "cheap convolutions of a transformer",
            f"{distill} --student.architecture timm:vit_tiny_patch16_224 --student.cheap DConv",
            "student.cheap is set, which no student of its own architecture has",
        ),
        Row(
            "cheap convolutions without residual blocks",
            "plan timm:vgg11 --cheap DConv",
            "no 3x3 convolution of a resid",
        ),
        Row("cheap convolutions and a budget", "plan wrn:10-1 --cheap DConv --budget 1MiB", "do not go together"),
        Row("a recipe of DDPMs for a classifier", f"{distill} --recipe natural", "recipe natural is of DDPMs"),
        Row(
            "a report of a classifier among others",
            "report {place}/report_classifier.json --output {out}",
            "is of a cl",
        ),
        Row("a push of a classifier", f"push {classifier} me/mine --dry_run", "is no student: it has no plan"),
        Row(
            "a push of a classifier by a DDPM's report",
            "push {place}/classifier_student me/mine --dry_run --report {place}/finished/report.json",
            "is no report of a classifier",
        ),
    ]
