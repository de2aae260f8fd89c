"""Where each public source was published, how it is read, and what was built from it when it was pinned."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from gateway.lab.rows import Side
from gateway.lab.upstream import dialogues, mails, tables
from gateway.lab.upstream.rows import Draft, Part

FILES = "https://raw.githubusercontent.com"
ARCHIVES = "https://codeload.github.com"
Read = Callable[[Part, bytes], Iterator[Draft]]


class Upstream(NamedTuple):
    """A published source. A part's address is `host/root/path`; `root` is repository and commit (or tag).

    `prefix` begins the ids; `sha256` is `content_hash` of the rows that the committed results were measured on.
    """

    prefix: str
    root: str
    parts: tuple[Part, ...]
    read: Read
    sha256: str
    host: str = FILES


def _multidogo() -> Iterator[Part]:
    folder = "data/paper_splits/splits_annotated_at_turn_level"
    sides: Mapping[str, Side] = {"train": "train", "dev": "test", "test": "test"}
    for domain in ("airline", "fastfood", "finance", "insurance", "media", "software"):
        for name, side in sides.items():
            yield Part(f"{folder}/{domain}/{name}.tsv", f"{domain}-{name}", side)


def _schema_guided() -> Iterator[Part]:
    sides: Mapping[str, tuple[int, Side]] = {"train": (127, "train"), "dev": (20, "test"), "test": (34, "test")}
    for name, (files, side) in sides.items():
        for number in range(1, files + 1):
            yield Part(f"{name}/dialogues_{number:03}.json", name, side)


UPSTREAM: Mapping[str, Upstream] = {
    "davidson2017": Upstream(
        "davidson",
        "t-davidson/hate-speech-and-offensive-language/cb50f7e9",
        (Part("data/labeled_data.csv"),),
        tables.davidson,
        "9bf21117b1225947bc753fe4dc98a3738bdf1881bbb8116bb936b6ee3e201ba5",
    ),
    "edos": Upstream(
        "sexism2022_english",
        "rewire-online/edos/b1f1fbcca9d42de0395432ada8fcfb5c35f68c77",
        (Part("data/edos_labelled_aggregated.csv"),),
        tables.edos,
        "2a0b51a3345649029c00114552cd0c9b9a48777fb4409d7c6f2a960874af7cfd",
    ),
    "convabuse": Upstream(
        "convabuse",
        "amandacurry/convabuse/c0a9469f",
        (
            Part("2_splits/ConvAbuseEMNLPtrain.csv", "train", "train"),
            Part("2_splits/ConvAbuseEMNLPvalid.csv", "valid", "test"),
        ),
        tables.convabuse,
        "1dd900d569ad790e61049001bd880ac56b6b3726b57ca347e7b32a9347bf4a35",
    ),
    "uci_sms_spam": Upstream(
        "ucisms",
        "hamzaaacodes/sms-spam-collection/f3e73e1e74e6330b62d1ee1983bba2a063184c26",
        (Part("SMSSpamCollection"),),
        tables.sms,
        "2cdb7c56521ce90f223d7c6111940a3fdbfe464e760e7c95af55327f9ec93b98",
    ),
    "youtube_spam": Upstream(
        "yt",
        "arshikachauhan/youtube-spam-comment-detector/a53277236d9dfca4f12c82f424aa757edc99b94f",
        (
            Part("data/Youtube01-Psy.csv", split="train"),
            Part("data/Youtube02-KatyPerry.csv", split="train"),
            Part("data/Youtube03-LMFAO.csv", split="train"),
            Part("data/Youtube04-Eminem.csv", split="test"),
        ),
        tables.youtube,
        "50c3fe78323526398bd08022f93f3d2a3deb31ffd8896294049cce421af96fc7",
    ),
    "spamassassin": Upstream(
        "sa",
        "stdlib-js/datasets-spam-assassin/tar.gz",
        (Part("refs/tags/v0.2.3"),),
        mails.spamassassin,
        "91ff0e143a9290b926d9ab3bfea8bfab5c7b1ac8430028f865b7cd1598c7aa27",
        ARCHIVES,
    ),
    "sgd_services_homes": Upstream(
        "sgd",
        "google-research-datasets/dstc8-schema-guided-dialogue/e852981a",
        tuple(_schema_guided()),
        dialogues.schema_guided,
        "737e790aa68de49ad96b1a4b4d297b687d3ed70f48278de6917eb94f0eb92ddc",
    ),
    "multidogo": Upstream(
        "mdg",
        "awslabs/multi-domain-goal-oriented-dialogues-dataset/baa30639",
        tuple(_multidogo()),
        tables.multidogo,
        "7dbfe0e6bd37b06d2347f4c5aed485da0793ecd2a70512d8aec35a9fa0093dce",
    ),
    "banking77": Upstream(
        "b77",
        "PolyAI-LDN/task-specific-datasets/57ec275d",
        (Part("banking_data/train.csv", "train", "train"), Part("banking_data/test.csv", "test", "test")),
        tables.banking77,
        "9d273c3eec86b4566501380149395fda371abb0708f32ec531d312ba81ff9828",
    ),
    "nlupp": Upstream(
        "nlupp",
        "PolyAI-LDN/task-specific-datasets/57ec275d",
        tuple(
            Part(f"nlupp/data/{field}/fold{n}.json", f"{field}-{n}")
            for field in ("hotels", "banking")
            for n in range(20)
        ),
        dialogues.nlupp,
        "5ebead54c2db11b55c31163e33453302672bed05e3a6e0f6da04b9260ceb4674",
    ),
    "clinc150": Upstream(
        "clinc",
        "clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de",
        (Part("data/data_full.json"),),
        dialogues.clinc150,
        "02f76143886e40f31a5db743a4159d5ef1fc781d2c8c27359a3917d0b5561ca6",
    ),
}
