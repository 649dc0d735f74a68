"""Text from TFDS datasets: prepared or not, with or without a held-out split."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import schema
from train.data import datasets
from train.data.pipeline import train_batches
from train.data.sources import Corpus, DataError, check_unchanged, open_corpus
from train.data.tokenizer import make_tokenizer

DOCUMENTS = [f"Document {number}.\n" + f"Line of {number}.\n" * number for number in range(40)]


class LocalText(tfds.core.GeneratorBasedBuilder):
    """A dataset that needs no network; the config `validated` has a validation split."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description="") for name in ("plain", "validated")]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "title": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        splits = {"train": self._generate_examples(DOCUMENTS)}
        if self.builder_config.name == "validated":
            splits["validation"] = self._generate_examples(["For validation.\n", "Also.\n"])
        return splits

    def _generate_examples(self, documents):
        for number, text in enumerate(documents):
            yield number, {"text": text, "title": f"T{number}\n", "number": number}


class LocalTranslation(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(("de", "en")))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"de": "Größe", "en": "size"}
        yield 1, {"de": "Höhe", "en": "height"}


class LocalTrainOnly(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.Translation(("zh", "en")), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(20):
            yield number, {"zh": f"第{number}句\n", "en": f"Sentence {number}."}


class LocalBroken(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host\nlong story")

    def _generate_examples(self):
        yield from ()


class LocalNeedy(LocalBroken):
    def _split_generators(self, dl_manager):
        raise ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def open_dataset(folder: str, name: str, **settings) -> Corpus:
    return open_corpus(schema.Data(source=f"tfds:{name}", directory=folder, **{"section_bytes": 64} | settings))


def text_of(sections) -> str:
    return "".join(sections[index].text for index in range(len(sections)))


def test_last_documents_are_held_out_where_there_is_no_such_split(folder):
    corpus = open_dataset(folder, "local_text/plain", held_out=0.1)
    assert text_of(corpus.train) == "".join(DOCUMENTS[:36])
    assert text_of(corpus.held_out) == "".join(DOCUMENTS[36:])
    assert len(corpus.train) > 36
    assert sum(corpus.train[i].last for i in range(len(corpus.train))) == 36


def test_the_validation_split_is_held_out(folder):
    corpus = open_dataset(folder, "local_text/validated")
    assert text_of(corpus.train) == "".join(DOCUMENTS)
    assert text_of(corpus.held_out) == "For validation.\nAlso.\n"


@pytest.mark.parametrize("split", ["train[:50%]", "train+validation", "all", "validation"])
def test_what_is_trained_on_is_not_held_out(folder, split):
    corpus = open_dataset(folder, f"local_text/validated:{split}", held_out=0.5)
    train, held_out = text_of(corpus.train), text_of(corpus.held_out)
    if split == "train[:50%]":
        assert (train, held_out) == ("".join(DOCUMENTS[:20]), "For validation.\nAlso.\n")
    else:
        everything = (
            "For validation.\nAlso.\n" if split == "validation" else "".join(DOCUMENTS) + "For validation.\nAlso.\n"
        )
        assert train + held_out == everything
        assert train
        assert held_out


def test_documents_of_large_splits_stay_whole(folder, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_INDEXED_BYTES", 100)
    corpus = open_dataset(folder, "local_text/plain", held_out=0.1)
    assert [corpus.train[i].text for i in range(len(corpus.train))] == DOCUMENTS[:36]
    assert [corpus.held_out[i].text for i in range(len(corpus.held_out))] == DOCUMENTS[36:]
    assert all(corpus.train[i].last for i in range(len(corpus.train)))
    assert len(open_dataset(folder, "local_text/plain", held_out=0.999).train) == 1


def test_a_field_is_picked(folder):
    assert open_dataset(folder, "local_text/plain", field="title").train[0].text == "T0\n"
    corpus = open_dataset(folder, "local_translation", field="de")
    assert sorted(text_of(corpus.train)) == sorted("GrößeHöhe")
    with pytest.raises(DataError, match=r"--data.field=text is no text in tfds:local_translation.*: de, en"):
        open_dataset(folder, "local_translation")


def pairs_of(sections) -> list[tuple[str, str]]:
    return [(sections[index].source, sections[index].text) for index in range(len(sections))]


def test_datasets_for_translation_are_pairs_in_either_direction(folder):
    corpus = open_dataset(folder, "local_translation", languages="de-en")
    assert sorted(pairs_of(corpus.train)) == [("Größe", "size"), ("Höhe", "height")]
    assert sorted(pairs_of(corpus.held_out)) == sorted(pairs_of(corpus.train))  # its test split
    other = open_dataset(folder, "local_translation", languages="en-de")
    assert sorted(pairs_of(other.train)) == [("height", "Höhe"), ("size", "Größe")]
    assert corpus.fingerprint != other.fingerprint
    pairs = [(f"Sentence {number}.", f"第{number}句") for number in range(20)]
    corpus = open_dataset(folder, "local_train_only", languages="en-zh", held_out=0.1)
    assert (pairs_of(corpus.train), pairs_of(corpus.held_out)) == (pairs[:18], pairs[18:])
    with pytest.raises(DataError, match="is a single section"):
        open_dataset(folder, "local_train_only:train[:1]", languages="en-zh")


def test_languages_that_a_dataset_lacks_are_one_clear_error(folder):
    with pytest.raises(DataError, match=r"--data.languages=de-fr: tfds:local_translation has no fr; .*are de, en"):
        open_dataset(folder, "local_translation", languages="de-fr")
    with pytest.raises(DataError, match=r"tfds:local_text/plain holds no pairs to translate; its fields are text, "):
        open_dataset(folder, "local_text/plain", languages="de-en")
    with pytest.raises(DataError, match=r"--data.languages=de must name two"):
        open_dataset(folder, "local_translation", languages="de")


def test_a_prepared_dataset_needs_neither_its_code_nor_a_second_preparation(folder, monkeypatch):
    open_dataset(folder, "local_text/plain")
    monkeypatch.setattr(LocalText, "_generate_examples", lambda *_: pytest.fail("was prepared a second time"))
    first = open_dataset(folder, "local_text/plain")
    monkeypatch.setattr(tfds.core.load, "builder_cls", _unknown)
    second = open_dataset(folder, "local_text/plain")
    check_unchanged(second, json.loads(json.dumps(first.record())))
    with pytest.raises(DataError, match="has changed since the run began: it was local_text/plain"):
        check_unchanged(open_dataset(folder, "local_text/plain", field="title"), first.record())


def _unknown(name: str):
    raise tfds.core.DatasetNotFoundError(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_shakespear", "TFDS has no dataset tiny_shakespear, .*did you mean tfds:tiny_shakespeare"),
        ("local_text/wrong", "local_text/wrong: .*wrong"),
        ("local_text/plain:tset", "no split tset .*it has train"),
        ("local_needy", "its own code needs apache-beam, .*pip install apache-beam.*--data.directory"),
        ("local_broken", "cannot be prepared in .*no route to host.*--data.directory"),
    ],
)
def test_what_is_missing_is_one_clear_error(folder, name, message):
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(folder, name)
    assert "\n" not in str(caught.value)


def test_a_dataset_in_tfrecord_says_how_to_prepare_it(tmp_path):
    open_dataset(str(tmp_path), "local_text/plain")
    description = tmp_path / "local_text/plain/1.0.0/dataset_info.json"
    description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"as tfrecord, which needs TensorFlow.*--file_format=array_record"):
        open_dataset(str(tmp_path), "local_text/plain")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_example_that_cannot_be_read_is_named_by_whoever_reads_it(prefetch):
    class Damaged(list):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("the disk does not answer")
            return {"text": b"text"}

    documents = datasets.WholeDocuments(Damaged(range(9)), "text", range(9))
    config = schema.Config(data=schema.Data(prefetch=prefetch, length=64), train=schema.Train(batch_size=3))
    corpus = Corpus(documents, documents, "", "")
    batches = train_batches(corpus, make_tokenizer(schema.Tokenizer(source="bytes"), corpus), config)
    with pytest.raises(DataError, match=r"the dataset: example 7 cannot be read \(OSError: the disk does not answer\)"):
        next(batches)
