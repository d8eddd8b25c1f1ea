"""The rows of ``test_bad_inputs.py``: what is wrong, the command, and words of the line."""

from typing import NamedTuple


class Row(NamedTuple):
    """``argv`` with {place}, {data}, {good} (a config) and {out} (where results would go); ``words`` of the line.

    ``without``: a package that is not installed."""

    what: str
    argv: str
    words: str
    without: str = ""


def rows() -> list[Row]:
    distill = "distill --config {good} --output_dir {out}"
    sample, evaluate = "sample {place}/teacher --output {out}", "evaluate {place}/teacher --data {data} --num_images 8"
    model = "sample {place}/%s --output {out}"
    plan_vit = "plan wrn:10-1 --architecture timm:vit_tiny_patch16_224"
    return [
        # models
        Row("weights cut in half", model % "truncated", "the weights of {place}/truncated cannot be loaded"),
        Row("a byte of the header flipped", model % "flipped", "the weights of {place}/flipped cannot be loaded"),
        Row("a header of 2^62 bytes", model % "huge_header", "cannot be loaded"),
        Row("a tensor of 4 TiB in a header", model % "huge_tensor", "cannot be loaded"),
        Row("a header that is not JSON", model % "no_json", "cannot be loaded"),
        Row("weights of no bytes", model % "empty_weights", "cannot be loaded"),
        Row("weights of whole numbers", model % "whole_numbers", "int64 for floating point"),
        Row("weights that hold NaN", model % "nan", "not finite, first in conv_in.bias"),
        Row("a tensor too many", model % "surplus", "1 tensors differ, first surplus"),
        Row("pickled weights", model % "pickled", "has only pickled weights (diffusion_pytorch_model.bin)"),
        Row("shards outside of the folder", model % "shards_climb", "a path out of the model's folder"),
        Row("a shard that is not there", model % "shard_missing", "b.safetensors is missing in"),
        Row("latents without their autoencoder", "plan {place}/latents", "cannot be read as JSON"),
        Row("latents of no autoencoder", "plan {place}/no_autoencoder", "has one autoencoder, vqvae or vae"),
        Row(
            "an autoencoder without weights",
            model % "no_decoder_weights",
            "the autoencoder of {place}/no_decoder_weights",
        ),
        Row("a scaling_factor of 0", "plan {place}/factor_of_0", "has scaling_factor 0.0: it is above 0"),
        Row(
            "the unet of a network of latents",
            model % "latents/unet",
            "it denoises latents, and the autoencoder is beside it",
        ),
        Row("a consistency model", model % "consistency", "is a consistency model, not a DDPM"),
        Row("a pipeline with a part that is not known", "plan {place}/with_part", "it is a MyPipeline with upscaler"),
        Row("a scheduler of another kind", "plan {place}/karras", "it is of KarrasVeScheduler"),
        Row("a variance that is not known", "plan {place}/other_variance", "its variance_type is fixed"),
        Row("betas of another length", "plan {place}/few_betas", "has 2 trained_betas for num_train_timesteps 1000"),
        Row("epsilon at zero terminal SNR", "plan {place}/zero_snr", "prediction_type epsilon tells nothing of it"),
        Row("a learned variance without channels", model % "no_variance", "and the network predicts none"),
        Row("weights linked from elsewhere", model % "linked", "is a link out of the model's folder"),
        Row("model_index.json with ../", model % "climbing", "names '../../evil', a path out of the model's folder"),
        Row("a config that is not JSON", model % "config_no_json", "config.json cannot be read as JSON"),
        Row("another kind of network", model % "conditional", "holds UNet2DConditionModel, not a UNet2DModel"),
        Row(
            "a billion layers", "plan {place}/huge_network", "layers_per_block 1000000000: whole numbers from 1 to 100"
        ),
        Row("a network larger than its weights", model % "wide_network", "are not of its config: it tells of"),
        Row("text for a number", "memory {place}/text_for_number", "norm_num_groups 'four', which must be a whole"),
        Row("blocks that have no student", "plan {place}/unsupported", "down_block_types has SkipDownBlock2D"),
        Row("a plan of no image size", "plan {place}/no_size", "give --image_size, the pixels a side"),
        Row("memory of no image size", "memory {place}/no_size", "give --image_size, the pixels a side"),
        Row(
            "a plan of rectangles", "plan {place}/rectangle", "is [16, 32], a rectangle, and squares alone are planned"
        ),
        Row("a size of three numbers", "plan {place}/three_sides", "one number of pixels is possible, or two"),
        Row("memory of rectangles", "memory {place}/rectangle", "is [16, 32], a rectangle"),
        Row("rectangles that are measured", "evaluate {place}/rectangle --data {data}", "squares alone are measured"),
        Row("classes that are no embedding", "plan {place}/embedded_timesteps", "its class_embed_type is timestep"),
        Row("betas past 1", model % "schedule", "leave the range from 0 to 1"),
        Row("a model that is not there", "memory {place}/nowhere", "there is no folder {place}/nowhere"),
        Row("a file for a model", "plan {data}", "is a file: give the diffusers folder"),
        Row("an empty folder for a model", "plan {place}/empty", "is no diffusers model"),
        # data
        Row("no images in a folder", f"{distill} --data {{place}}/empty", "no images in {place}/empty"),
        Row("a text file named .png", f"{distill} --data {{place}}/text", "text/a.png: not a PNG, JPEG, WebP, BMP"),
        Row("a PNG cut in half", f"{distill} --data {{place}}/torn", "torn/a.png"),
        Row("more bad images than skip allows", f"{distill} --data {{place}}/torn --on_bad_image skip", "torn/a.png"),
        Row("an image bomb", f"{distill} --data {{place}}/bomb", "more pixels than the safety limit of 67,108,864"),
        Row("floats past 1", f"{distill} --data {{place}}/float", "a.png: floating-point values of 3 to 3, outside of"),
        Row(
            "values past data_range",
            f"{distill} --data {{place}}/twelve_bits --data_range 1023",
            "outside of 0 to 1023; data_range is the value that becomes white",
        ),
        Row(
            "a data_range of 16 bits for 8",
            f"{distill} --data_range 4095",
            "8-bit values, which end at 255, so that data_range 4095",
        ),
        Row(
            "a data_range for 16-bit colour",
            f"{distill} --data {{place}}/deep_colour --data_range 4095",
            "16-bit colour, of which the upper byte is read",
        ),
        Row("a data_range of nothing", f"{distill} --data_range 0", "give the value that becomes white"),
        Row(
            "an image bomb in TIFF", f"{distill} --data {{place}}/bomb_tiff", "a.tif: its header announces more pixels"
        ),
        Row(
            "four channels out of a folder",
            "distill --teacher {place}/four_channels --data {place}/mixed_modes --output_dir {out}",
            "save them as an .npz of uint8 (N, H, W, 4)",
        ),
        Row(
            "one channel for four",
            "distill --teacher {place}/four_channels --data {data} --output_dir {out}",
            "have 1 channel, and 4 are needed",
        ),
        Row("four channels for one", f"{distill} --data {{place}}/four.npz", "have 4 channels, and 1 are needed"),
        Row(
            "nine channels",
            "teach --data {place}/four.npz --channels 9 --output_dir {out}",
            "channels must be from 1 to 8, not 9",
        ),
        Row("PNG files of four channels", "sample {place}/four_channels --output {out}", "give --output FILE.npz"),
        Row(
            "distances of four channels",
            "evaluate {place}/four_channels --data {place}/four.npz",
            "images of 4 channels cannot be measured",
        ),
        Row(
            "images of four channels to be measured",
            "evaluate {place}/four.npz --data {data}",
            "images of 4 channels cannot be measured",
        ),
        Row(
            "statistics of four channels",
            "statistics {place}/four.npz --output {out}.npz",
            "images of 4 channels cannot be measured",
        ),
        Row(
            "a data_range of the images' own size",
            "statistics {data} --data_range 100 --output {out}.npz",
            "--data_range needs --image_size and --channels",
        ),
        Row(
            "a data_range of no data",
            "evaluate {place}/teacher --teacher {place}/teacher --data_range 100",
            "--data_range is of the images that --data gives",
        ),
        Row("an .npz of objects", f"{distill} --data {{place}}/objects.npz", "Python objects, which are never loaded"),
        Row("an .npz of floats", f"{distill} --data {{place}}/floats.npz", "holds float32, not uint8"),
        Row("channels first", f"{distill} --data {{place}}/channels_first.npz", "move the channels last"),
        Row("an .npz of no images", f"{distill} --data {{place}}/none.npz", "with N > 0"),
        Row("text named .npz", f"{distill} --data {{place}}/text.npz", "it is not an archive"),
        Row("an .npz cut in half", f"{distill} --data {{place}}/truncated.npz", "cannot be read as an .npz of images"),
        Row("a header that announces 3 TB", f"{distill} --data {{place}}/liar.npz", "which its contents are not"),
        Row("a folder named .npz", f"{distill} --data {{place}}/folder_named/images.npz", "no images in"),
        Row("an unknown kind of data", f"{distill} --data s3:bucket", "unknown source prefix 's3:'"),
        Row("transparency to be measured", "evaluate {place}/mixed_modes --data {data}", "b.png has transparency"),
        # settings
        Row("YAML with a Python tag", "distill --config {place}/tag.yaml --output_dir {out}", "python/object/apply"),
        Row("YAML that is not YAML", "distill --config {place}/broken.yaml --output_dir {out}", "while parsing"),
        Row("a config of bytes", "distill --config {place}/bytes.yaml --output_dir {out}", "not UTF-8"),
        Row("an unknown setting", "distill --config {place}/unknown.yaml --output_dir {out}", "'nonsense'"),
        Row("a list for a number", "distill --config {place}/many.yaml --output_dir {out}", "steps"),
        Row("an unknown option", f"{distill} --nonsense 3", "--nonsense"),
        Row("no steps", f"{distill} --training.steps 0", "training.steps must be at least 1, not 0"),
        Row("a negative learning rate", f"{distill} --training.learning_rate -1", "must be positive"),
        Row(
            "a learning rate that is no number", f"{distill} --training.learning_rate .nan", "must be positive, not nan"
        ),
        Row("an unknown optimizer", f"{distill} --training.optimizer rmsprop", "training.optimizer"),
        Row("a negative weight decay", f"{distill} --training.weight_decay -1", "must be a finite number from 0 on"),
        Row("milestones that fall", f"{distill} --training.milestones [0.6,0.3]", "must rise between 0 and 1"),
        Row("a temperature for a DDPM", f"{distill} --loss.temperature 4", "softens the logits of a classifier"),
        Row("a negative size", f"{distill} --image_size -16", "image_size must be at least 1, not -16"),
        Row("an unknown policy", f"{distill} --on_bad_image ignore", "on_bad_image"),
        Row("parts that do not divide the batch", f"{distill} --training.gradient_accumulation 3", "a multiple of 3"),
        Row(
            "a batch of auto without a budget, on a CPU",
            f"{distill} --training.batch_size auto",
            "needs training.memory_budget on a CPU",
        ),
        Row(
            "a memory budget in which no image fits",
            f"{distill} --training.memory_budget 1KiB",
            "a step with one image at a time takes",
        ),
        Row("a memory budget that is no size", f"{distill} --training.memory_budget much", "'much' is not a size"),
        Row(
            "a memory budget, and micro-batches",
            f"{distill} --training.memory_budget 1GiB --training.gradient_accumulation 2",
            "set one of them",
        ),
        # students with a network of their own, and classifiers
        Row(
            "tokens that meet no map of the teacher",
            f'{plan_vit} --image_size 32 --arguments {{{{"patch_size":16}}}}',
            "a map of 2 a side, and the teacher's maps are of 32, 16, 8",
        ),
        Row(
            "patches that do not divide the image",
            f'{plan_vit} --image_size 36 --arguments {{{{"patch_size":8}}}}',
            "images of 36 pixels a side are not divided by patches of 8",
        ),
        Row(
            "an argument that timm lacks",
            f'{plan_vit} --arguments {{{{"patches":8}}}}',
            "timm cannot build timm:vit_tiny_patch16_224",
        ),
        Row("a transformer as a teacher", "plan timm:vit_tiny_patch16_224", "whose tokens keep one resolution"),
        Row("a convolutional student of its own", "plan wrn:10-1 --architecture timm:resnet18", "leave student.archi"),
        Row(
            "a classifier as the student of a DDPM",
            "plan {place}/teacher --architecture timm:vit_tiny_patch16_224",
            "cannot learn what this teacher does, to denoise",
        ),
        Row("arguments of no architecture", 'plan wrn:10-1 --arguments {{"depth":4}}', "student.arguments is set"),
        Row("a student of its own under a budget", f"{plan_vit} --budget 1MiB", "a budget is met by changing"),
        Row("a family that is not installed", "plan {place}/of_a_family", "of the family steps, and no package"),
        Row("a plan for no image", "plan {place}/teacher --batch_size 0", "batch_size must be at least 1"),
        Row("a plan under a budget for a batch", "plan {place}/teacher --budget 1MiB --batch_size 4", "go together"),
        Row(
            "weights of the loss all 0",
            f"{distill} --loss.task 0 --loss.output 0 --loss.red 0",
            "nothing would be learned",
        ),
        Row("an unknown prediction", f"{distill} --student.prediction_type x", "student.prediction_type"),
        Row("a size that does not divide", f"{distill} --image_size 20", "does not divide by 8"),
        Row(
            "an image of a million pixels a side", "teach --data {data} --image_size 1000000 --output_dir {out}", "8192"
        ),
        Row(
            "an argument that diffusers lacks",
            'teach --data {data} --unet {{"nonsense":1}} --output_dir {out}',
            "unet.nonsense",
        ),
        Row(
            "groups that do not divide channels",
            'teach --data {data} --image_size 16 --unet {{"norm_num_groups":5}} --output_dir {out}',
            "diffusers refuses",
        ),
        # sampling, measuring, reports
        Row("an unknown scheduler", f"{sample} --scheduler x", "unknown scheduler 'x'"),
        Row("no sampling steps", f"{sample} --steps 0", "steps must be at least 1, not 0"),
        Row("negative images", f"{sample} --num_images -4", "num_images must be at least 1, not -4"),
        Row("an output in use", "sample {place}/teacher --output {place}/run", "is not an empty folder"),
        Row("nothing to resume", f"{sample} --resume", "nothing to resume"),
        Row("more images than there are", f"{evaluate}0", "has 10 images, 80 are needed"),
        Row("steps that are words", f"{evaluate} --steps ten", "--steps is 'ten'"),
        Row(
            "weights that are no tensors", f"{evaluate} --inception_weights {{place}}/no_tensors.pth", "no_tensors.pth"
        ),
        Row("statistics that do not fit", "evaluate {place}/teacher --data {place}/statistics.npz", "sigma (D, D)"),
        Row(
            "statistics of objects",
            "evaluate {place}/teacher --data {place}/statistics_objects.npz",
            "Python objects, which are never loaded",
        ),
        Row("statistics into a name of no .npz", "statistics {data} --output {out}", "must end in .npz"),
        Row("statistics of a bomb", "statistics {place}/bomb --output {out}.npz", "more pixels than the safety limit"),
        Row("a report that is not JSON", "report {place}/report_torn.json --output {out}", "cannot be read as JSON"),
        Row("a report that is a list", "report {place}/report_list.json --output {out}", "is no report"),
        Row("a report of another program", "report {place}/report_other.json --output {out}", "is no report"),
        Row("JSON nested too deep", "report {place}/report_deep.json --output {out}", "cannot be read as JSON"),
        Row("a budget in words", "plan {place}/teacher --budget much", "'much' is not a size"),
        Row("memory of no images", "memory {place}/teacher --batch_size 0", "batch_size must be at least 1, not 0"),
    ]
