"""What was tried: what it is, the command, its exit code, and words that its message must contain.

`{name}` is what the maker of that name wrote. A command is split as a shell splits it; a list is taken as
it stands.
"""

from __future__ import annotations

from collections.abc import Iterator

from .blip2_cases import BLIP2
from .doodl_cases import DOODL
from .drawing_cases import DRAWING
from .inversion_cases import INVERSION
from .styler_cases import STYLER
from .vqgan_cases import VQGAN

Case = tuple[str, str | list[str], int, str]

BOMB = "💣"
HELLO = "أهلا"  # written from right to left
TURN = "\u202e"  # what follows is shown from right to left
NUL = "a\0b"
NOT_UTF8 = "\udcff"  # what Python makes of the byte 0xff in a command line
ENDLESS = "x" * 5000
NINES = "9" * 40


def cards() -> Iterator[Case]:
    """A referee's folder whose card is none, lies, or asks for too much."""
    for name, code, words in (
        ("no_card", 2, "is not JSON"),
        ("card_not_json", 2, "is not JSON"),
        ("card_not_utf8", 2, "is not UTF-8 text"),
        ("card_a_list", 2, "it holds list, a card is a JSON object"),
        ("card_null", 2, "it holds NoneType"),
        ("card_deep", 2, "is not JSON (maximum recursion depth"),
        ("card_deep_inside", 2, "deeper than 16 levels"),
        ("card_huge_integer", 2, "is not JSON (Exceeds the limit"),
        ("card_many_megabytes", 2, "40000012 bytes, more than"),
        ("card_missing_keys", 2, "missing: architecture, family"),
        ("card_unknown_keys", 2, "unknown: on_load"),
        ("card_name_number", 2, "name: Input should be a valid string"),
        ("card_name_empty", 2, "name: String should have at least 1"),
        ("card_name_html", 2, "holds markup, quotes, or a path"),
        ("card_name_path", 2, "holds markup, quotes, or a path"),
        ("card_name_code", 2, "holds markup, quotes, or a path"),
        ("card_name_escapes", 2, "not a line of printable text"),
        ("card_name_turned", 2, "not a line of printable text"),
        ("card_name_long", 2, "at most 200 characters"),
        ("card_family_list", 2, "family: Input should be a valid string"),
        ("card_family_unknown", 2, "no referee here is of the family '../../toy'"),
        ("card_scale_text", 2, "logit_scale: Input should be a valid number"),
        ("card_scale_nan", 2, "logit_scale: Input should be a finite number"),
        ("card_scale_inf", 2, "logit_scale: Input should be a finite number"),
        ("card_scale_negative", 2, "logit_scale: Input should be greater than 0"),
        ("card_scale_true", 2, "logit_scale: Input should be a valid number"),
        ("card_bias_list", 2, "logit_bias: Input should be a valid number"),
        ("card_provenance_nan", 2, "provenance: nan is not a finite number"),
        ("card_provenance_huge", 2, "provenance: an integer of 1025 bits is too large"),
        ("card_weights_list", 2, "weights: Input should be a valid dictionary"),
        ("card_weights_none", 1, "its card names no weights"),
        ("card_weights_path", 2, "'../../../../../../etc/passwd' is a path"),
        ("card_weights_absolute", 2, "'/etc/passwd' is a path"),
        ("card_weights_windows", 2, "is a path"),
        ("card_weights_nul", 2, "not a line of printable text"),
        ("card_weights_dots", 2, "'..' is a path"),
        ("card_weights_missing_file", 1, "is incomplete (missing open_clip_model.safetensors)"),
        ("card_hash_short", 2, "should match pattern"),
        ("card_hash_number", 2, "should be a valid string"),
        ("card_hash_wrong", 1, "is not the file that the card was written for (its sha256 differs)"),
        ("card_other_text_tower", 1, "was made with another text tower"),
        ("card_text_tower_list", 2, "text_tower: Input should be a valid dictionary"),
        ("card_size_negative", 2, "size [-16, 16] is not one or two numbers of pixels"),
        ("card_size_zero", 2, "size 0 is not"),
        ("card_size_huge", 2, "size [1000000, 1000000] is not"),
        ("card_size_text", 2, "size 'big' is not"),
        ("card_size_three", 2, "size [16, 16, 16] is not"),
        ("card_mean_short", 2, "mean (0.5,) is not three numbers"),
        ("card_mean_text", 2, "mean 'grey' is not three numbers"),
        ("card_std_zero", 2, "pixels are divided by it"),
        ("card_std_huge", 2, "is not three numbers"),
        ("card_interpolation", 2, "interpolation 'nearest-ish' is not one of"),
        ("card_fill_colour", 2, "is not a level of 0 to 255"),
        ("card_preprocess_list", 2, "preprocess: Input should be a valid dictionary"),
        ("card_toy_huge", 2, "a width from 4 to 256, not 16 and 1000000000000"),
        ("card_toy_negative", 2, "not 16 and -3"),
        ("card_toy_text", 2, "not '16; rm -rf /' and 16"),
        ("card_toy_bare", 2, "not None and None"),
        ("card_threat_text", 2, "threat: Input should be a valid dictionary"),
        ("card_threat_keys", 2, "has the entries norm, eps and size"),
        ("card_threat_norm", 2, "unknown norm ['l2']"),
        ("card_threat_eps", 2, "eps must be a positive number, not 'much'"),
        ("card_threat_huge", 2, "size must be one or two positive integers"),
        ("card_threat_size", 2, "size must be one or two positive integers, not None"),
        ("card_claims_number", 2, "claims: Input should be a valid list"),
        ("card_claim_bare", 2, "missing: attack, data"),
        ("card_claim_text", 2, "it holds str"),
        ("card_claim_value", 2, "value: Input should be a valid number"),
        ("card_claim_nan", 2, "low: Input should be a finite number"),
        ("card_claim_n", 2, "n: Input should be greater than 0"),
        ("card_claim_attack", 2, "attack: String should have at most 200"),
        ("card_is_a_folder", 2, "contains no referee"),
        ("card_is_a_pipe", 2, "contains no referee"),
        ("card_is_zeros", 2, "contains no referee"),
        ("card_is_unreadable", 2, "cannot be read: Input/output error"),
        ("card_is_a_loop", 2, "contains no referee"),
    ):
        yield "a card", f"evaluate {{{name}}} --data {{data}}", code, words
    for verb in ("show", "verify", "add"):
        yield "a card of JSON in JSON", f"referees {verb} {{card_deep}}", 2, "is not JSON"
        yield "a card that clears the terminal", f"referees {verb} {{card_name_escapes}}", 2, "printable text"
        yield "a card that names a path", f"referees {verb} {{card_weights_path}}", 2, "is a path"
        yield "a card that is a pipe", f"referees {verb} {{card_is_a_pipe}}", 2, "card_is_a_pipe"
    yield "a card with another hash", "referees verify {card_hash_wrong}", 1, "is not what its card says"
    yield "a card with another text tower", "referees verify {card_other_text_tower}", 1, "is not what its card says"
    yield "a card with another hash", "export {card_hash_wrong} --name x", 1, "its sha256 differs"
    yield "a card with another hash", "robustify emoji --start {card_hash_wrong} --out {out}", 1, "its sha256 differs"
    yield "a card that names a path", "robustify emoji --start {card_weights_path} --out {out}", 2, "is a path"


def weights() -> Iterator[Case]:
    """Weight files that the card vouches for, or that need no card."""
    for name, code, words in (
        ("weights_nan", 1, "holds NaN or infinity in 0.weight"),
        ("weights_one_nan", 1, "holds NaN or infinity in 3.bias"),
        ("weights_inf", 1, "holds NaN or infinity in 3.bias"),
        ("weights_beyond_float32", 1, "holds NaN or infinity in 3.bias"),
        ("weights_shape", 2, "of another shape (3.weight (16, 127) for (16, 128))"),
        ("weights_transposed", 2, "of another shape"),
        ("weights_scalar", 2, "3.weight () for (16, 128)"),
        ("weights_missing", 2, "1 missing (3.bias)"),
        ("weights_extra", 2, "1 unexpected (9.weight)"),
        ("weights_integers", 2, "of another type (3.bias int64)"),
        ("weights_bytes", 2, "of another type (3.weight uint8)"),
        ("weights_booleans", 2, "of another type (3.bias bool)"),
        ("weights_complex", 2, "of another type (3.bias complex64)"),
        ("weights_strange_names", 2, "2 unexpected"),
        ("weights_long_name", 2, "1 unexpected"),
        ("weights_empty", 1, "truncated or damaged (0 bytes"),
        ("weights_truncated", 1, "truncated or damaged"),
        ("weights_padded", 1, "truncated or damaged"),
        ("weights_random", 1, "truncated or damaged"),
        ("weights_no_header", 1, "truncated or damaged"),
        ("weights_header_of_2_to_the_60", 1, "header too large"),
        ("weights_header_not_json", 1, "invalid JSON in header"),
        ("weights_header_deep", 1, "recursion limit exceeded"),
        ("weights_claim_10_tb", 1, "file not fully covered"),
        ("weights_claim_shape", 1, "invalid shape"),
        ("weights_overflow", 1, "overflow"),
        ("weights_negative_offsets", 1, "invalid value: integer `-4`"),
        ("weights_backwards", 1, "invalid offset for tensor `a`"),
        ("weights_overlapping", 1, "invalid offset for tensor `b`"),
        ("weights_dtype", 1, "unknown variant `F31`"),
        ("weights_pickle", 1, "truncated or damaged"),
        ("weights_are_a_folder", 1, "is incomplete (missing image_tower.safetensors)"),
        ("weights_are_a_pipe", 1, "is incomplete"),
        ("weights_are_zeros", 1, "is incomplete"),
        ("weights_elsewhere", 1, "names model.safetensors, and no image_tower.safetensors"),
        ("pickle_payload", 2, "it asks for builtins.getattr, pathlib"),
        ("pickle_payload_legacy", 2, "could run code when opened"),
        ("pickle_bare", 2, "could run code when opened"),
        ("pickle_of_a_module", 2, "it asks for torch.nn.modules.linear.Linear"),
        ("pickle_of_a_number", 2, "holds int, not weights"),
        ("pickle_of_a_list", 2, "holds list, not weights"),
        ("pickle_empty_dict", 2, "holds dict, not weights"),
        ("pickle_of_texts", 2, "visual.a: not tensors"),
        ("pickle_numpy_claim", 1, "truncated or damaged"),
        ("pickle_truncated", 1, "truncated or damaged (2000 bytes"),
        ("pickle_empty", 1, "truncated or damaged (0 bytes"),
        ("pickle_random", 2, "torch's weights-only reader cannot read it"),
        ("pickle_zip_bomb", 2, "bytes that unpack to 268435669"),
        ("pickle_legacy_claim", 1, "truncated or damaged"),
        ("pickle_stretched", 2, "proj (10000000000000,) for (16, 12)"),
        ("pickle_nan", 1, "holds NaN or infinity in proj"),
        ("pickle_sparse", 2, "visual.proj sparse, quantised or without values"),
        ("pickle_meta", 2, "visual.proj sparse, quantised or without values"),
        ("pickle_no_scale", 2, "has no logit_scale"),
        ("pickle_two_models", 2, "holds 2 models, below a., b."),
        ("pickle_scale_nan", 1, "logit_scale is not one finite number"),
        ("pickle_scale_shape", 1, "logit_scale is not one finite number"),
        ("torch_script", 2, "is a TorchScript archive"),
        ("open_clip_config_text", 2, "is not JSON"),
        ("open_clip_config_list", 2, "is not an open_clip config"),
        ("open_clip_config_number", 2, "is not an open_clip config"),
        ("open_clip_config_deep", 2, "is not JSON"),
        ("open_clip_no_weights", 2, "contains no weights"),
        ("open_clip_huge", 2, "has width 1000000000"),
        ("open_clip_large", 2, "of another shape"),
        ("open_clip_many_layers", 2, "has layers 1000000000"),
        ("open_clip_negative", 2, "cannot build an image tower"),
        ("open_clip_zero", 2, "cannot build an image tower"),
        ("open_clip_text_for_number", 2, "cannot build an image tower"),
        ("open_clip_unknown_key", 2, "unexpected keyword argument 'run'"),
        ("open_clip_no_text_cfg", 2, 'needs a "text_cfg"'),
        ("open_clip_vision_list", 2, 'a model_cfg needs "embed_dim" and "vision_cfg"'),
        ("open_clip_timm_hub", 2, "'hf-hub:a/b' is not the name of a timm model"),
        ("open_clip_timm_path", 2, "'../x' is not the name of a timm model"),
        ("open_clip_remote_code", 2, "its tokenizer_kwargs ask for trust_remote_code"),
        ("open_clip_text_of_strangers", 2, "is refused"),
        ("open_clip_tokenizer_of_strangers", 2, "has no tokenizer that can be read"),
        ("transformers_remote_code", 2, "has no tokenizer that can be read"),
        ("transformers_tokenizer_text", 2, "has no tokenizer that can be read"),
        ("transformers_bare", 2, "397 missing"),
        ("transformers_huge", 2, "has hidden_size 1000000000"),
        ("transformers_large", 2, "missing"),
        ("transformers_wrong_types", 2, "is not a folder of a CLIPModel"),
        ("transformers_other_model", 2, "contains no referee"),
        ("transformers_deep", 2, "is not JSON"),
    ):
        yield "weights", f"evaluate {{{name}}} --data {{data}}", code, words
    for name, code, words in (
        ("weights_nan", 1, "holds NaN or infinity in 0.weight"),
        ("weights_missing", 2, "1 missing (3.bias)"),
        ("pickle_payload", 2, "could run code when opened"),
    ):
        yield "weights", f"export {{{name}}} --name x", code, words
        yield "weights", f"robustify emoji --start {{{name}}} --out {{out}}", code, words


def data() -> Iterator[Case]:
    """Pictures, shards, names and templates to measure on."""
    for name, code, words in (
        ("data_empty", 2, "is not a folder of pictures"),
        ("data_no_pictures", 2, "is not a folder of pictures"),
        ("data_png_claim", 1, "too many pixels"),
        ("data_png_claim_30000", 1, "too many pixels"),
        ("data_truncated", 1, "truncated or damaged image"),
        ("data_empty_picture", 1, "empty image"),
        ("data_text_as_picture", 1, "not an image"),
        ("data_svg", 1, "not an image"),
        ("data_eps", 1, "not an image"),
        ("data_bmp", 1, "not an image"),
        ("data_16_bits", 1, "more than 8 bits a channel"),
        ("data_one_pixel_wide", 1, "a picture of 60000x1 pixels is too long"),
        ("data_names_few", 2, "names 1 classes, but there are 2 sub-folders"),
        ("data_names_blank", 2, "classnames.txt has no name in line 2"),
        ("data_names_latin", 2, "classnames.txt is not UTF-8 text"),
        ("data_names_megabytes", 2, "40000000 bytes, more than"),
        ("data_pipe", 2, "x.png is a device or a pipe, not a file"),
        ("data_zeros", 2, "x.png is a device or a pipe, not a file"),
        ("data_unreadable", 2, "x.png cannot be read: Input/output error"),
        ("data_dangling", 2, "x.png cannot be read: No such file"),
        ("data_loop", 2, "is a link back to"),
        ("data_sparse", 2, "1099511627776 bytes, more than"),
        ("shards_empty", 2, "is not a whole tar file"),
        ("shards_random", 2, "is not a whole tar file"),
        ("shards_truncated", 2, "is not a whole tar file"),
        ("shards_no_names", 2, "labels up to 0 need 1 names, 0 are there"),
        ("shards_label_text", 2, "is 'red', and a .cls is"),
        ("shards_label_negative", 2, "is '-1', and a .cls is"),
        ("shards_label_large", 2, "labels up to 7 need 8 names"),
        ("shards_label_huge", 2, "is '99999999999999999999', and a .cls is"),
        ("shards_label_other_digits", 2, "is '٣', and a .cls is"),
        ("shards_label_missing", 2, "1 of 2 images have a label"),
        ("shards_caption_latin", 2, "is not UTF-8 text"),
        ("shards_caption_empty", 2, "holds an empty caption"),
        ("shards_twice", 2, "has 'a.png' twice"),
        ("shards_link", 2, "'a.png' is a link or a device"),
        ("shards_huge_member", 2, "'a.png' claims 8796093022208 bytes"),
        ("shards_huge_label", 2, "and a .cls is a label's number"),
        ("shards_gzip_bomb", 2, "claims 8589934592 bytes"),
        ("shards_gzip_broken", 2, "is not a whole tar file"),
        ("shards_bz2", 2, "is not a whole tar file"),
        ("shards_pickle", 2, "labels up to 9 need 10 names"),
        ("shards_names_blank", 2, "classnames.txt has no name in line 2"),
        ("shards_names_latin", 2, "classnames.txt is not UTF-8 text"),
        ("shard_is_a_pipe", 2, "is not a file"),
        ("shard_is_zeros", 2, "is not a file"),
    ):
        yield "data", f"evaluate {{toy}} --data {{{name}}} --tasks zero-shot,gradients --size 16", code, words
    yield "pictures of two sizes", "evaluate {toy} --data {data_sizes}", 2, "2 different sizes"
    yield "no captions", "evaluate {toy} --data {data} --tasks retrieval", 2, "retrieval needs captions"
    yield "templates of shards", "evaluate {toy} --data {shards_templates} --templates dataset", 2, "exactly one {}"
    for place, words in (
        ("{pipe}", "no data at"),
        ("{loop}", "no data at"),
        ("{folder}", "is not a folder of pictures"),
        ("{file}", "no data at"),
        ("/dev/zero", "no data at"),
        ("", "no data at"),
        (ENDLESS, "no data at"),
        (NUL, "holds a zero byte"),
        (NOT_UTF8, "is not UTF-8"),
        ("~nobody-here/x", "no data at"),
        ("emoji/../../etc", 'no split "../../etc"'),
        (f"emoji/{TURN}", "no split"),
        ("/proc", "is a link back to /"),
        ("pipe:touch pwned", "no data at"),
    ):
        yield "a place without data", ["evaluate", "{toy}", "--data", place], 2, words
    for templates, words in (
        ("{templates_latin}", "is not UTF-8 text"),
        ("{templates_empty}", "no templates in"),
        ("{templates_no_place}", "needs exactly one {}"),
        ("{templates_two_places}", "needs exactly one {}"),
        ("{templates_megabytes}", "40000000 bytes, more than"),
        ("{pipe}", "unknown templates"),
        ("{loop}", "unknown templates"),
        ("{folder}", "unknown templates"),
        ("/dev/zero", "unknown templates"),
        ("/proc/self/mem", "cannot be read"),
        (ENDLESS, "unknown templates"),
        (NUL, "holds a zero byte"),
        ("", "unknown templates"),
    ):
        yield "templates", ["evaluate", "{toy}", "--data", "{data}", "--templates", templates], 2, words


def names() -> Iterator[Case]:
    """Names of referees that are paths, flags, reserved, or nothing."""
    for name, code, words in (
        ("{pipe}", 2, "there is no referee"),
        ("{loop}", 2, "there is no referee"),
        ("{folder}", 2, "contains no referee"),
        ("{file}", 2, "weights are read from"),
        ("{pickle_file}", 2, "could run code when opened"),
        ("/dev/zero", 2, "there is no referee"),
        (ENDLESS, 2, "File name too long"),
        (NUL, 2, "holds a zero byte"),
        (NOT_UTF8, 2, "is not UTF-8"),
        ("", 2, "a referee's name or folder is needed"),
        ("~nobody-here/x", 2, "there is no referee '~nobody-here/x'"),
        ("..", 2, "contains no referee"),
        ("../../etc/passwd", 2, "../../etc/passwd"),
        (BOMB, 2, "there is no referee"),
        (HELLO, 2, "there is no referee"),
        ("$(touch pwned)", 2, "there is no referee"),
        ("%s%n", 2, "there is no referee"),
        ("emoji-robust/../emoji-robust", 2, "there is no referee"),
        ("emoji-robust\n", 2, "there is no referee"),
        ("hf-hub:../../x", 2, "names no model"),
        ("hf-hub:", 2, "names no model"),
        ("local-dir:/dev", 2, "there is no /dev/open_clip_config.json"),
        ("timm:../../x", 2, "needs weights"),
        ("ViT-B-32:../../../x", 2, "open_clip has no weights"),
        (":", 2, "open_clip has no architecture ''"),
        ("x.pt", 2, "there is no file x.pt"),
    ):
        yield "a name", ["evaluate", name, "--data", "{data}"], code, words
    for verb, none in (("show", "no referee"), ("verify", "no referee"), ("remove", "no referee"), ("add", "no card")):
        for name in ("nowhere", "../../../etc", "/", "/dev/zero", "{pipe}", "{loop}", "{folder}", BOMB):
            yield "a name", ["referees", verb, name], 2, none
        yield "a name of too many letters", ["referees", verb, ENDLESS], 2, "e"
        yield "a name with a zero byte", ["referees", verb, NUL], 2, "holds a zero byte"
        yield "a flag for a name", ["referees", verb, "--bogus"], 2, "--bogus: unknown flag"
    yield "what comes with the package", "referees remove emoji-robust", 2, "cannot be removed"
    for name in (
        "",
        "../x",
        "a/b",
        "/abs",
        "-x",
        "--half",
        ".x",
        "..",
        "a b",
        "a\nb",
        BOMB,
        "x" * 300,
        HELLO,
        "x.json",
    ):
        for verb in (["export"], ["referees", "add"]):
            yield "a name to take", [*verb, "{toy}", f"--name={name}"], 2, "cannot name a referee"
    for verb in ("export", "referees add"):
        yield "a name that is taken", f"{verb} {{toy}} --name emoji-robust", 2, "is the name of a referee already"
        yield "a name with a zero byte", [*verb.split(), "{toy}", f"--name={NUL}"], 2, "holds a zero byte"


def evaluations() -> Iterator[Case]:
    """Flags of evaluate."""
    for flags, words in (
        ("--limit nan", "valid integer"),
        ("--limit 0", "greater than 0"),
        ("--limit -1", "greater than 0"),
        (f"--limit {NINES}", "beyond the integers of 64 bits"),
        (f"--limit {'9' * 5000}", "exceeded maximum size"),
        ("--size 0", "greater than 0"),
        ("--size 1000000", "less than or equal to 4096"),
        ("--batch-size 0", "greater than 0"),
        (f"--batch-size {NINES}", "less than or equal to 1048576"),
        (f"--seed {NINES}", "beyond the integers of 64 bits"),
        ("--seed nan", "valid integer"),
        ("--seed 1.5", "valid integer"),
        ("--attack l2:1", "cannot read the attack"),
        ("--attack l2:nan@2", "is not a positive number"),
        ("--attack l2:inf@2", "is not a positive number"),
        ("--attack l2:-1@2", "is not a positive number"),
        ("--attack l2:1e300@2", "looks as if given in /255"),
        ("--attack l2:1@0", "is not a whole number from 1"),
        ("--attack l2:1@-2", "is not a whole number from 1"),
        ("--attack l2:1@1e9", "is not a whole number from 1"),
        ("--attack l2:1@2000000", "is not a whole number from 1 to 1000000"),
        ("--attack l2:1@2x0", "is not a whole number from 1"),
        (f"--attack l2:1@{'9' * 5000}", "cannot read an attack of 5005 characters"),
        ("--attack l2:1@2:1e300", "these span nan to nan"),
        ("--attack l2:1@2:0", "is not a positive number"),
        ("--attack l2:1/0@2", "is not a positive number"),
        ("--attack linf:8@2", "write linf:8/255@2"),
        ("--attack l3:1@2", "unknown norm 'l3'"),
        ("--attack ''", "cannot read the attack ''"),
        ("--attack 'l2:1@2;rm -rf /'", "is not a whole number"),
        ("--attack l2:1@2,x", "cannot read the attack 'x'"),
        ("--attack l2:١@2", "is not a positive number"),
        ("--attack l2:1_0@2", "is not a positive number"),
        ("--device tpu", "unknown device"),
        ("--device meta", "nothing here runs on the device"),
        ("--device cuda:99", "is not here"),
        ("--device cuda:-1", "unknown device"),
        ("--device cpu:77", "nothing here runs on the device"),
        ("--device ''", "unknown device"),
        ("--dtype int8", "unknown dtype"),
        ("--tasks all", "'certification', 'corruptions' or 'edits'"),
        ("--tasks ''", "'certification', 'corruptions' or 'edits'"),
        ("--labels some", "should be 'all' or 'present'"),
        ("--baseline nowhere", "there is no referee 'nowhere'"),
        ("--baseline ''", "a referee's name or folder is needed"),
        ("--out {file}", "is not a folder"),
        ("--out {file}/x", "cannot be written (Not a directory)"),
        ("--out {loop}", "is not a folder"),
        ("--out /dev/null", "is not a folder"),
        ("--out /proc/nothing/x", "cannot be written"),
        (f"--out {ENDLESS}", "File name too long"),
        ("--csv {folder}", "is not a file"),
        ("--csv {file}/x", "cannot be written (Not a directory)"),
        ("--csv {pipe}", "is not a file"),
        ("--json {folder}", "is a directory"),
        ("--json {file}/x", "cannot be written (Not a directory)"),
        ("--json {loop}", "is not a file"),
        ("--json {pipe}", "is not a file"),
        ("--sign --templates photo", "a signed claim is measured with the templates plain"),
        ("--bogus 1", "--bogus: unknown flag"),
        ("--limit", "requires an argument"),
    ):
        yield "a flag of evaluate", f"evaluate {{toy}} --data {{data}} {flags}", 2, words
    prompts = ["evaluate", "{toy}", "--data", "{data}", "--tasks", "gradients", "--prompts"]
    yield "a prompt that is not UTF-8", [*prompts, NOT_UTF8], 2, "is not UTF-8"
    yield "a prompt with a zero byte", [*prompts, NUL], 2, "holds a zero byte"
    yield "no referee", "evaluate --data {data}", 2, "REFEREES is missing"
    yield "one referee twice", "evaluate {toy} {toy} --data {data}", 2, "two referees are called"


def recipes() -> Iterator[Case]:
    """Flags of a recipe, and files that are none."""
    for flags, words in (
        ("--steps 0", "greater than 0"),
        ("--steps nan", "valid integer"),
        ("--steps -5", "greater than 0"),
        ("--steps 1.5", "valid integer"),
        (f"--steps {NINES}", "beyond the integers of 64 bits"),
        ("--lr nan", "finite number"),
        ("--lr inf", "finite number"),
        ("--lr 1e999", "finite number"),
        ("--lr -1", "greater than 0"),
        ("--eps nan", "finite number"),
        ("--eps inf", "finite number"),
        ("--eps 0", "greater than 0"),
        ("--eps 1e-320", "beyond the numbers of 32 bits"),
        ("--norm l7", "should be 'l2' or 'linf'"),
        ("--batch-size 0", "greater than 0"),
        (f"--batch-size {NINES}", "beyond the integers of 64 bits"),
        ("--ema nan", "finite number"),
        ("--ema inf", "finite number"),
        ("--weight-decay inf", "finite number"),
        ("--weight-decay -1", "greater than or equal to 0"),
        ("--warmup -1", "greater than or equal to 0"),
        ("--attack-steps 0", "greater than 0"),
        (f"--attack-steps {NINES}", "beyond the integers of 64 bits"),
        ("--objective magic", "should be 'text-bank'"),
        ("--split ../../x", 'no split "../../x"'),
        ("--start nowhere", "there is no referee 'nowhere'"),
        ("--start {file}", "weights are read from"),
        ("--start /dev/zero", "there is no referee"),
        (f"--seed {NINES}", "beyond the integers of 64 bits"),
        ("--out {file}", "is not a folder"),
        ("--out {folder}", "is not empty"),
        ("--out /dev/null", "is not a folder"),
        (f"--out {ENDLESS}", "file name too long"),
        ("--resume {folder}", "not a run's folder"),
        ("--resume {file}", "--resume"),
        ("--resume /dev/null", "--resume"),
        ("--resume {run_bare}", "not a run's record"),
        ("--resume {run_list}", "not a run's record"),
        ("--resume {run_not_json}", "is not readable"),
        ("--resume {run_of_another}", "--resume"),
        ("--resume latest/../..", "--resume"),
        ("--device tpu", "unknown device"),
        ("--device meta", "nothing here runs on the device"),
        ("--clean-weight nan", "finite number"),
        ("--checkpoint-every 0", "greater than 0"),
        ("--objective clip --batch-size 1", "constant for a batch of one"),
        ("--attack-objective siglip --batch-size 1", "constant for a batch of one"),
        ("--evaluate-every -1", "greater than or equal to 0"),
        ("--stpes 3", "did you mean --steps?"),
        ("extra words", "2 faults"),
        ("--quick=maybe", "does not take a value"),
    ):
        yield "a flag of a recipe", f"robustify emoji {flags}", 2, words
    for name, code, words in (
        ("recipe_not_python", 2, "is not Python (line 1"),
        ("recipe_nul", 2, "is not Python"),
        ("recipe_latin", 2, "is not a recipe"),
        ("recipe_empty", 2, "is not a recipe"),
        ("recipe_a_number", 2, "is not a recipe"),
        ("recipe_raises", 1, "fails while imported: ValueError('boom')"),
        ("recipe_exits", 1, "fails while imported: SystemExit(0)"),
        ("recipe_imports", 1, "the module a_module_that_is_not is not installed"),
        ("recipe_no_types", 2, "can't become a flag"),
        ("recipe_lacks_flags", 2, "must also take device"),
        ("recipe_deep", 2, "is not Python"),
        ("recipe_folder", 2, "there is no recipe file"),
        ("recipe_pipe", 2, "there is no recipe file"),
        ("file", 2, "unknown recipe"),
    ):
        yield "a recipe file", f"robustify {{{name}}}", code, words
    for name in ("nowhere", "../../etc/passwd", "", ENDLESS, "/dev/zero", ".", "..", BOMB, "../../../../../../tmp/x"):
        yield "a recipe's name", ["robustify", name], 2, "unknown recipe"
    yield "a way to another room", "robustify ../pretrain/emoji_judge --bogus", 2, "unknown recipe"
    for name in ("nowhere.py", f"{ENDLESS}.py", f"{NUL}.py", "/dev/zero/x.py"):
        yield "a recipe's path", ["robustify", name], 2, "there is no recipe file"


def others() -> Iterator[Case]:
    """The other commands: demo, export, doctor, plan, runs."""
    for flags, words in (
        ("--steps 0", "greater than 0"),
        ("--steps nan", "valid integer"),
        ("--eps nan", "finite number"),
        ("--eps inf", "finite number"),
        ("--eps 400", "looks as if given in /255"),
        ("--attack l2", "cannot read the attack"),
        ("--attack l2:1e300@2", "looks as if given in /255"),
        ("--limit 0", "greater than 0"),
        ("--out {folder}", "is not empty"),
        ("--out {file}", "is not a folder"),
        ("--seed x", "valid integer"),
        ("extra", "unexpected argument"),
    ):
        yield "a flag of the demo", f"demo {flags}", 2, words
    for arguments, words in (
        ("{nowhere} --name x", "nowhere"),
        ("/dev/zero --name x", "/dev/zero"),
        ("{pipe} --name x", "pipe"),
        ("{loop} --name x", "loop"),
        ("{folder} --name x", "contains no referee"),
        ("{file} --name x", "file.txt"),
        ("'' --name x", ""),
        ("{run_bare} --name x", "not a run's record"),
        ("{run_list} --name x", "not a run's record"),
        ("{run_not_json} --name x", "is not readable"),
        ("{toy} --name x --to {folder}", "exists"),
        ("{toy} --name x --to {file}", "is not a folder"),
        ("{toy} --name x --to {file}/x", "cannot be written"),
        ("{toy} --name x --to {loop}", "is not a folder"),
        ("{toy} --name x --to /proc/nothing/x", "cannot be written"),
        (f"{{toy}} --name x --to {ENDLESS}", "File name too long"),
        ("{toy} --name x --no-register", "needs a folder"),
        ("{toy}", "--name is missing"),
        ("--name x", "RUN is missing"),
    ):
        yield "an argument of export", f"export {arguments}", 2, words
    for verb in ("show", "clean"):
        for name, words in (
            ("nowhere", "there is no run 'nowhere'"),
            ("../../x", "is not a run's name"),
            ("/", "is not a run's name"),
            ("..", "not a run's name"),
            (BOMB, "there is no run"),
            (NUL, "holds a zero byte"),
            (NOT_UTF8, "is not UTF-8"),
            (ENDLESS, "no run"),
            ("", "run's name"),
        ):
            yield "a run's name", ["runs", verb, name], 2, words
    for command, words in (
        ("runs show run_bare --folder {run_bare}", "there is no run"),
        ("runs list --folder {file}", "is not a folder"),
        ("runs list --folder {loop}", "is not a folder"),
        ("runs list --folder {pipe}", "is not a folder"),
        ("runs list extra", "unexpected argument"),
        ("runs list --json {pipe}", "is not a file"),
        ("runs frobnicate", "No such command"),
        ("plan emoji --samples -1", "a whole number above 0"),
        ("plan emoji --samples 1e999", "a whole number above 0"),
        ("plan emoji --gpu h100 --samples 100X", "a whole number above 0"),
        ("doctor --device tpu", "unknown device"),
        ("doctor --device meta", "nothing here runs on the device"),
        ("doctor extra", "unexpected argument"),
        ("doctor --json {folder}", "is a directory"),
        ("doctor --json {file}/x", "cannot be written"),
        ("selftest --device tpu", "unknown device"),
        ("selftest --device cuda:99", "is not here"),
        ("selftest --json {folder}", "is a directory"),
        ("plan nowhere", "unknown recipe"),
        ("plan emoji --gpu nothing", "--gpu"),
        ("plan emoji --count 0", "greater than 0"),
        (f"plan emoji --count {NINES}", "beyond the integers of 64 bits"),
        ("referees verify {toy} --claim nothing", "has no claim 'nothing'"),
        ("referees list extra", "unexpected argument"),
        ("referees list --json {folder}", "is a directory"),
        ("frobnicate", "No such command"),
        (f"{BOMB}", "No such command"),
        ("--bogus", "No such option"),
        ("''", "No such command"),
    ):
        yield "a command", command, 2, words


ALL: tuple[Case, ...] = (*cards(), *weights(), *data(), *names(), *evaluations(), *recipes(), *others())


def smoothing() -> Iterator[Case]:
    """Names of smoothed referees, and flags of a certification."""
    for spec, words in (
        ("", "cannot read the smoothing ''"),
        ("x", "write REFEREE~smooth:SIGMAxSAMPLES"),
        ("nan", "cannot read the smoothing 'nan'"),
        ("-1x2", "cannot read the smoothing"),
        ("1e3x2", "cannot read the smoothing"),
        ("٠.٢x2", "cannot read the smoothing"),
        (f"{NINES}x2", "above 0 and up to 2"),
        ("0x2", "above 0 and up to 2"),
        ("64x2", "64/255 is 0.251"),
        ("0.25x0", "1 to 10000 noisy copies"),
        ("0.25x999999999", "1 to 10000 noisy copies"),
        (f"0.25x{NINES}", "cannot read the smoothing"),
        (f"0.25x2@{NINES}", "cannot read the smoothing"),
        ("0.25x2;rm", "cannot read the smoothing"),
        (ENDLESS, "cannot read the smoothing"),
    ):
        yield "a smoothed referee", ["evaluate", f"emoji-vanilla~smooth:{spec}", "--limit", "1"], 2, words
    yield "a smoothed referee", "evaluate '~smooth:0.25x2' --limit 1", 2, "lacks the base referee"
    yield "a smoothed referee", "evaluate 'nowhere~smooth:0.25x2' --limit 1", 2, "there is no referee 'nowhere'"
    for flags, words in (
        ("--tasks certification", "--sigma 0.25"),
        ("--tasks certification --sigma 0", "above 0 and up to 2"),
        ("--tasks certification --sigma -1", "above 0 and up to 2"),
        ("--tasks certification --sigma nan", "finite number"),
        ("--tasks certification --sigma 64", "64/255 is 0.251"),
        ("--tasks certification --sigma 0.25 --samples 9", "take at least 10"),
        ("--tasks certification --sigma 0.25 --samples 0", "greater than 0"),
        ("--tasks certification --sigma 0.25 --samples 1000000000", "too many"),
        (f"--tasks certification --sigma 0.25 --samples {NINES}", "beyond the integers of 64 bits"),
        ("--tasks certification --sigma 0.25 --sign", "cannot be signed"),
        ("--sigma 0.25", "has no effect"),
    ):
        yield "a flag of a certification", f"evaluate emoji-vanilla --limit 1 {flags}", 2, words


ALL += (*smoothing(),)


def strong_attacks() -> Iterator[Case]:
    """Attacks that have a name, numbers of labels, and evaluations that go on."""
    for flags, words in (
        ("--attack l2:1@apgd", "unknown kind; did you mean apgd-t or apgd-ce"),
        ("--attack l2:1@autoattack:5", "takes no steps"),
        ("--attack l2:1@square:0", "is not a whole number from 1"),
        (f"--attack l2:1@square:{NINES}", "is not a whole number from 1"),
        ("--attack l2:nan@autoattack", "is not a positive number"),
        ("--attack linf:8@autoattack", "write linf:8/255@autoattack"),
        (f"--attack l2:1@{BOMB}", "is not a whole number"),
        ("--attack l2:1@apgd-ce --tasks retrieval", "the task retrieval needs PGD"),
        ("--pag l2:1@autoattack", "the PAG score needs PGD"),
        ("--labels 0", "greater than 0"),
        ("--labels -3", "greater than 0"),
        ("--labels 1.5", "valid integer"),
        (f"--labels {NINES}", "beyond the integers of 64 bits"),
        ("--labels 999999", "the set has"),
        ("--resume", "resume needs the folder"),
    ):
        yield "a strong attack", f"evaluate {{toy}} --data {{data}} {flags}", 2, words
    yield "an explained attack", "explain {toy} --images {data} --attack l2:1@autoattack", 2, "an explanation needs PGD"


ALL += (*strong_attacks(),)


def objectives() -> Iterator[Case]:
    """Objectives, their numbers, and checks that have nothing to look at."""
    for command, words in (
        ("robustify emoji --objective trade", "'fare' or 'trades'"),
        ("robustify emoji --attack-objective nothing", "--attack-objective"),
        ("robustify emoji --attack-momentum 1", "less than 1"),
        ("robustify emoji --step-size 0", "greater than 0"),
        ("robustify emoji --beta -1", "greater than 0"),
        ("robustify emoji --anchor nan", "finite number"),
        ("robustify emoji-fare --eps 0", "greater than 0"),
        ("robustify emoji-tecoa --eps 4", "looks as if given in /255"),
        ("robustify fare-vit-l14", "--data is missing"),
        ("robustify tecoa-vit-l14 --data {data} --template photo", "needs one {} where a class's name goes"),
        ("robustify fare-vit-l14 --start {toy} --data {file} --workers 0", "no data at"),
        ("robustify leaf --words nowhere.txt", "there is no such file"),
        ("robustify leaf --words {file} --attack random", "leave one out"),
        ("robustify leaf --data nowhere", "no data at"),
        ("robustify leaf --start {toy}", "has no weights to train"),
        ("robustify leaf --attack charmer", "'leaf' or 'random'"),
        ("robustify leaf --edits 0", "greater than 0"),
        ("plan leaf", "trains a text tower"),
        ("plan distance", "trains LoRA"),
        ("reproduce robustness --rows trade", "did you mean trades"),
        ("evaluate {toy} --data {data} --masking", "masking checks need an attack"),
        ("evaluate {toy} --data {data} --masking-source {toy}", "has no effect"),
        (
            "evaluate {toy} --data {data} --masking --attack l2:1@autoattack",
            "the masking checks need PGD",
        ),
    ):
        yield "an objective", command, 2, words


ALL += (*objectives(),)


def damages() -> Iterator[Case]:
    """Damaged pictures and masking checks of what is not there."""
    for flags, words in (
        ("--tasks corruption", "--tasks"),
        ("--tasks masking", "--tasks"),
        (f"--masking --attack l2:0.1@2 --masking-source {ENDLESS}", "is neither a referee's name nor a path"),
    ):
        yield "damage", f"evaluate {{toy}} --data {{data}} {flags}", 2, words


ALL += (*damages(),)

ALL += (*VQGAN, *BLIP2)

ALL += (*DRAWING,)

ALL += (*STYLER,)

ALL += (*INVERSION, *DOODL)
