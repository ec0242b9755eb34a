"""Recommendations: what kind of task data is, the user's table as the floor, and configs that run as they are printed."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.config import experiment, load
from lossopt_jax.recommend import FAMILIES, KINDS, recommend_csv

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3)).astype(np.float32)
LINE = X @ np.float32([1, -2, 0.5])


def test_the_table_that_users_know_is_the_floor():
    wanted = {
        "regression": {"mse", "mae", "huber"},
        "regression_outliers": {"mae", "huber"},
        "binary": {"binary_cross_entropy"},
        "multiclass": {"cross_entropy"},
        "segmentation": {"binary_dice", "binary_iou"},
    }
    for kind, valid in wanted.items():
        assert lo.recommend(kind).loss.name in valid
    optimizers = {"mlp": {"adam", "adamw"}, "transformer": {"adamw"}, "cnn": {"momentum"}, "rnn": {"adam", "rmsprop"}}
    for family, valid in optimizers.items():
        assert FAMILIES[family].optimizer.name in valid
    assert FAMILIES["transformer"].schedule.numbers["warmup"] > 0
    assert 0.01 <= FAMILIES["cnn"].schedule.numbers["init"] <= 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_real_and_has_its_reason(kind, family):
    found = lo.recommend(kind, family=family)
    recipe = found.recipe(steps=100)
    assert recipe.loss.fn.__name__ == found.loss.name
    assert float(recipe.schedule.hparams["total"]) == 100
    low, high = found.space[f"schedule.{FAMILIES[family].rate}"]
    assert low < FAMILIES[family].schedule.numbers[FAMILIES[family].rate] < high
    assert all(choice.reason and choice.source for choice in found.choices.values())
    assert str(found).count("  source  ") >= 3


@pytest.mark.parametrize(
    ("x", "y", "kind"),
    [
        (X, LINE + RNG.normal(size=400), "regression"),
        (X, LINE + RNG.standard_t(1.5, 400), "regression_outliers"),
        (X, LINE, "regression"),
        (X, RNG.poisson(np.exp(2.5 + LINE / 3)), "counts"),
        (X, RNG.integers(20_000, 900_000, 400), "regression"),  # prices
        (X, LINE > 0, "binary"),
        (X, (LINE > 3.5).astype(np.float32), "binary_rare"),
        (X, np.digitize(LINE, [-1, 1]), "multiclass"),
        (X, np.digitize(LINE, [-1, 1]) + 1, "multiclass"),
        (X, np.digitize(LINE, [0, 6]), "multiclass_long_tail"),
        (X, np.digitize(LINE + RNG.logistic(size=400), [-2, -1, 0.5, 2]), "ordinal"),
        (X, np.array([2, 0, 4, 1, 3])[np.digitize(LINE, [-2, -1, 0.5, 2])], "multiclass"),
        (X, RNG.integers(0, 5, 400), "multiclass"),
        (X, RNG.poisson(np.exp(X[:, 0] / 2)), "counts"),
        (X, np.arange(400) % 26, "multiclass"),  # letters: as frequent as each other
        (X, 1 + RNG.integers(0, 26, 400), "multiclass"),
        (X, np.arange(400), "counts"),  # one of each tells nothing of classes
        (X, RNG.geometric(0.05, 400), "counts"),
        (X, np.argsort(np.argsort(LINE)) // 8, "regression"),  # amounts, as frequent as each other
        (X, 1 + np.argsort(np.argsort(LINE + RNG.normal(size=400))) // 8, "regression"),
        (X, np.eye(3)[np.digitize(LINE, [-1, 1])], "multiclass"),
        (X, X > 0, "multilabel"),
        (X, X * 2, "regression"),
        (np.zeros((4, 8, 8, 1)), np.arange(256).reshape(4, 8, 8) % 2, "segmentation"),
        (np.zeros((4, 8, 8, 1)), 255 * (np.arange(256).reshape(4, 8, 8) % 2), "segmentation"),
        (np.zeros((4, 8, 8, 1)), np.arange(256).reshape(4, 8, 8) % 3, "segmentation_classes"),
        (np.arange(40).reshape(4, 10), np.arange(40).reshape(4, 10) + 1, "tokens"),
    ],
)
def test_the_kind_is_read_from_the_data(x, y, kind):
    found = lo.recommend(inputs=x, targets=y)
    assert found.kind == kind
    assert found.facts


def test_the_data_gives_the_numbers_that_it_has():
    y = (LINE > 3.5).astype(int)
    found = lo.recommend(inputs=X, targets=y)
    assert found.loss.numbers["pos_weight"] == pytest.approx((y == 0).sum() / (y == 1).sum(), rel=1e-3)
    classes = np.digitize(LINE, [0, 6])
    found = lo.recommend(inputs=X, targets=classes)
    np.testing.assert_allclose(found.loss.numbers["priors"], np.bincount(classes) / 400, atol=1e-6)
    assert lo.recommend(inputs=np.zeros((9, 8, 8, 1)), targets=np.arange(9) % 3).family == "cnn"
    real = {"digits": "multiclass", "breast_cancer": "binary", "rare_cancer": "binary_rare", "pasted_digits": "segmentation"}
    for task, kind in real.items():
        assert lo.recommend(**dict(zip(("inputs", "targets"), getattr(lo.data, task)().train, strict=True))).kind == kind


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give a kind"),
        ({"kind": "binry"}, "did you mean 'binary'"),
        ({"kind": "binary", "family": "transfomer"}, "did you mean 'transformer'"),
        ({"inputs": X, "targets": LINE[:-1]}, "same number .* 400 and 399"),
        ({"inputs": X[:0], "targets": LINE[:0]}, "at least 1"),
        ({"inputs": X * np.nan, "targets": LINE}, "inputs has 1200 values that are not finite"),
        ({"inputs": X, "targets": np.ones(400)}, "all targets are 1.0"),
        ({"inputs": X, "targets": np.full(400, "a")}, "targets must be numbers"),
    ],
)
def test_what_cannot_be_read_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        lo.recommend(**given)


def test_configs_load_and_those_of_no_network_of_ours_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text("a,target\n" + "".join(f"{i},{i % 5}\n" for i in range(40)))  # what a template has for the user's own
    made = 0
    for kind in KINDS:
        for family in FAMILIES:
            found = lo.recommend(kind, family=family)
            others = {"digits": ("cnn", "rnn"), "help_text": ("rnn",)}.get(KINDS[kind].data, ())
            if kind in ("multilabel", "segmentation_classes") or family not in {KINDS[kind].family, *others}:
                with pytest.raises(ValueError, match=r"no network of ours|neither a task of ours nor a CSV file holds"):
                    found.config()
                continue
            config = found.config(steps=30)
            assert config.startswith("# data.path and data.target are to be filled in") == (KINDS[kind].data is None)
            loaded = experiment(tomllib.loads(config))
            assert loaded.trials is not None
            assert loaded.recipe.schedule.fn.__name__ == FAMILIES[family].schedule.name
            made += 1
    assert made == 15


def test_from_a_csv_file_to_a_trained_model(lossopt, tmp_path):
    kinds = np.array(["oak", "ash", "elm"])[np.digitize(LINE, [-1, 1])]
    rows = [",".join([*(f"{v:.6f}" for v in row), f"{line:.6f}", kind]) for row, line, kind in zip(X, LINE, kinds, strict=True)]
    (tmp_path / "my.csv").write_text("\n".join(["a,b,c,price,tree", *rows]))
    code, out, err = lossopt("recommend", "--data", "my.csv", "--target", "tree", "--write", "tree.toml")
    assert code == 0, err
    assert out.startswith("multiclass, mlp\n  3 classes, the largest ")
    assert load("tree.toml").task.output_shape == (3,)
    (tmp_path / "priced.csv").write_text("\n".join(line.rpartition(",")[0] for line in ["a,b,c,price,tree", *rows]))
    code, out, err = lossopt("recommend", "--data", "priced.csv", "--target", "price", "--write", "price.toml")
    assert out.startswith("regression, mlp")
    code, out, err = lossopt("train", "price.toml", "--out", "here", "--set", "run.steps=150")
    assert code == 0, err
    assert float(out.split("held-out loss ")[-1].split()[0]) < 0.3  # of a variance of 1


def test_targets_of_one_column_are_read_as_the_network_gives_them():
    for targets in (LINE, (LINE > 0).astype(int), np.arange(400) % 3):
        assert lo.recommend(inputs=X, targets=targets[:, None]) == lo.recommend(inputs=X, targets=targets)


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("a,b\n1,2\n", "c", "has no column 'c'; it has a, b"),
        ("a,b\n1,2\n", "b", "has 1 rows"),
        ("", "b", "no header line"),
        ("a,b\n" + "1,2\n" * 5 + "1\n", "b", "line 7 of my.csv has 1 values where the header has 2"),
        ("a,b\n" + "1,2\n" * 5 + "x,3\n", "b", "line 7 of my.csv: 'a' is 'x', which is no finite number"),
        ("a,b\n" + "1,2\n" * 5 + ",3\n", "b", "line 7 of my.csv: 'a' is empty"),
        ("a,b\n" + "1,2\n\n" * 5 + "x,3\n", "b", "line 12 of my.csv: 'a' is 'x'"),
        ("a,a,b\n" + "1,2,3\n" * 5, "b", "names a column twice: a, a, b"),
        ("b\n" + "1\n2\n3\n4\n5\n", "b", "no column beside 'b'"),
        ("a,b\n" + "1,2\n" * 6, "b", "all values of 'b' are 2"),
        ("a,b\n" + "1,2\n1,3\n" * 5 + "1,nan\n", "b", "line 12 of my.csv: 'b' is 'nan', which is no finite number"),
        ("a,b\n" + "".join(f"1,name {i}\n" for i in range(40)), "b", "'b' has 40 different texts in 40 lines, too many to be classes"),
        ("a;b\n" + "1;2\n" * 6, "b", "it has a;b: separated by ';', where commas are expected"),
    ],
)
def test_broken_csv_files_are_named(text, target, words, lossopt, tmp_path):
    (tmp_path / "my.csv").write_text(text)
    code, _, err = lossopt("recommend", "--data", "my.csv", "--target", target)
    assert code == 2
    assert words in err


def test_the_command_prints_a_config_and_says_what_is_wrong(lossopt):
    code, out, _ = lossopt("recommend", "segmentation")
    assert code == 0
    assert tomllib.loads(out[out.index("\nname = ") :])["model"]["name"] == "unet"
    assert lossopt("recommend", "--data", "none.csv", "--target", "x")[0] == 2
    assert "go together" in lossopt("recommend", "--data", "none.csv")[2]
    assert "give a kind of task (regression, " in lossopt("recommend")[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].data is not None])
def test_configs_train_as_they_are_printed(kind):
    made = experiment(tomllib.loads(lo.recommend(kind).config(steps=60)))
    fitted = lo.fit(made.model, made.recipe, train=made.task.train, evaluate=made.task.evaluate, run=made.run)
    assert fitted.diverged_at is None
    assert fitted.history["loss"][-10:].mean() < fitted.history["loss"][:10].mean()


MEASURED = np.random.default_rng(0).normal(size=60)


@pytest.mark.parametrize(
    ("kind", "targets", "words"),
    [
        (
            "binary",
            np.arange(60) % 3,
            r"binary needs targets that are whole numbers \[n\] of two values, got \[60\] with 3 .* like multiclass",
        ),
        ("multiclass", np.arange(60) % 2, "three values or more, .* look like binary"),
        ("multiclass", MEASURED, "multiclass needs .* 60 different values .* look like regression"),
        ("counts", -(np.arange(60) % 5), "counts needs targets that are whole numbers .* from 0 on, got .* from -4 to 0"),
        ("counts", MEASURED, "look like regression"),
        ("multilabel", np.arange(60) % 2, "0 and 1 .n, labels., got .60. with 2 different values"),
        ("segmentation", MEASURED, "n, h, w., 0 and 1, got .60."),
        ("tokens", np.arange(60) % 7, "as the inputs, got .60. with 7"),
        ("ordinal", MEASURED, "ordinal needs"),
    ],
)
def test_a_kind_that_the_data_cannot_be_of_is_refused(kind, targets, words):
    inputs = np.random.default_rng(1).normal(size=(60, 3))
    with pytest.raises(ValueError, match=words):
        lo.recommend(kind, inputs=inputs, targets=targets)


def test_the_numbers_of_a_loss_come_from_the_data_where_its_kind_is_given():
    inputs, targets = np.random.default_rng(1).normal(size=(60, 3)), np.repeat([0, 1, 2, 3], [30, 15, 9, 6])
    assert lo.recommend("multiclass_long_tail", inputs=inputs, targets=targets).loss.numbers == {"priors": [0.5, 0.25, 0.15, 0.1]}
    assert lo.recommend("binary_rare", inputs=inputs, targets=targets > 2).loss.numbers == {"pos_weight": 9.0}
    assert lo.recommend("regression", inputs=inputs, targets=targets[:, None]).kind == "regression"


def test_what_is_seen_in_labels_is_said_where_their_kind_is_given():
    y = np.where(np.arange(400) % 10 == 3, 7, 9)
    assert lo.recommend("binary_rare", inputs=X, targets=y).facts == lo.recommend(inputs=X, targets=y).facts
    assert "the rare class is 7" in lo.recommend("binary_rare", inputs=X, targets=y).facts[2]
    three = lo.recommend("multiclass", inputs=X, targets=10 * np.arange(400) % 30).facts
    assert three == ("the labels are 0, 10, 20, and the loss wants 0 to 2: numpy.searchsorted(numpy.unique(targets), targets) has them so",)
    masks = 255 * (np.arange(256).reshape(4, 8, 8) % 2)
    (fact,) = lo.recommend("segmentation_classes", inputs=np.zeros((4, 8, 8, 1)), targets=masks).facts
    assert fact == "the labels are 0 and 255, and the loss wants 0 and 1: targets == 255 has them so"
    grades = lo.recommend("ordinal", inputs=X, targets=np.arange(400) % 5 + 1).facts
    assert grades[0].startswith("the labels are 1, 2, 3, 4, 5, and the loss wants 0 to 4")
    assert lo.recommend("regression", inputs=X, targets=y).facts == lo.recommend("counts", inputs=X, targets=y).facts == ()


def test_large_labels_are_shown_in_full(tmp_path):
    y = 10000000001 + 2 * (LINE > 0)
    assert "the labels are 10000000001 and 10000000003" in lo.recommend(inputs=X, targets=y).facts[1]
    (tmp_path / "my.csv").write_text("\n".join(["a,y", *(f"{a},{label:.0f}" for a, label in zip(X[:, 0], y, strict=True))]))
    assert recommend_csv(str(tmp_path / "my.csv"), "y")[0].facts[-1].endswith("the config: 10000000001, 10000000003")


def test_amounts_as_frequent_as_each_other_are_a_regression_in_the_config_too(tmp_path):
    percentile = np.argsort(np.argsort(LINE)) // 8
    (tmp_path / "my.csv").write_text("\n".join(["a,b,c,y", *(f"{a},{b},{c},{p}" for (a, b, c), p in zip(X, percentile, strict=True))]))
    found, table = recommend_csv(str(tmp_path / "my.csv"), "y")
    assert (found.kind, table["kind"]) == ("regression", "regression")
    assert found.facts[-1].startswith("50 whole numbers that lie in their order along one direction of the inputs: amounts; ")


def test_two_texts_about_as_frequent_are_coded_by_the_alphabet():
    for first in (190, 210):
        names, codes = lo.data.coded(np.repeat(["a", "b"], [first, 400 - first]))
        assert (names.tolist(), codes.sum()) == (["a", "b"], 400 - first)


def test_files_that_are_no_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"csv: cannot read .*nowhere.csv: No such file"):
        recommend_csv(str(tmp_path / "nowhere.csv"), "y")
    (tmp_path / "latin.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv is no table of text in UTF-8 .*: save it as that"):
        recommend_csv(str(tmp_path / "latin.csv"), "y")
    (tmp_path / "texts.csv").write_text("x,y\n" + "1,cat\n2,dog\n" * 5)
    with pytest.raises(ValueError, match="regression needs numbers, and 'y' has texts such as 'cat'"):
        recommend_csv(str(tmp_path / "texts.csv"), "y", "regression")


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (np.ones((5, 16, 16, 3)), np.arange(320).reshape(5, 8, 8) % 2, r"masks of shape \(5, 8, 8\) need images of that size"),
        (np.arange(60).reshape(5, 12) % 7, np.arange(55).reshape(5, 11) % 7, r"tokens need targets of the inputs' shape \(5, 12\)"),
        (np.ones((5, 2)), 3.0, r"need an axis of examples, got shapes \(5, 2\) and \(\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(inputs, targets, words):
    with pytest.raises(ValueError, match=words):
        lo.recommend(inputs=inputs, targets=targets)
    with pytest.raises(TypeError, match=r"kind must be one of regression, .*, got 3"):
        lo.recommend(3)


@pytest.mark.parametrize(("shape", "family"), [((60, 8), "mlp"), ((60, 8, 4), "rnn"), ((60, 8, 8), "mlp"), ((60, 8, 8, 1), "cnn")])
def test_the_family_follows_the_axes(shape, family):
    found = lo.recommend(inputs=np.random.default_rng(0).normal(size=shape), targets=np.arange(60) % 3)
    assert found.family == family
    assert any("sequences of 8 steps of 4 numbers" in fact for fact in found.facts) == (family == "rnn")


def test_the_rare_class_is_weighed_up_whichever_number_it_has():
    y = np.repeat([0, 1], [40, 360])
    found = lo.recommend(inputs=X, targets=y)
    assert found.kind == "binary_rare"
    assert found.loss.numbers == {"pos_weight": pytest.approx(40 / 360, rel=1e-3)}  # negatives over positives, as torch's pos_weight
    assert "the rare class is 0, so pos_weight is below 1" in found.facts[1]
    assert lo.recommend("binary_rare", inputs=X, targets=1 - y).loss.numbers == {"pos_weight": 9.0}


@pytest.mark.parametrize("rare", ["fraud", "zebra"])  # before and after "normal" in the alphabet
def test_of_two_texts_the_rarer_is_the_positive_one_in_the_config_too(rare, tmp_path):
    texts = np.where(np.arange(400) % 10 == 3, rare, "normal")
    rows = [f"{a},{b},{text}" for (a, b, _), text in zip(X, texts, strict=True)]
    (tmp_path / "my.csv").write_text("\n".join(["a,b,y", *rows]))
    found, table = recommend_csv(str(tmp_path / "my.csv"), "y")
    assert (found.kind, found.loss.numbers) == ("binary_rare", {"pos_weight": 9.0})
    assert found.facts == ("40 of 400 are 1 (10.0%)", f"coded 0 and 1, here and by the config: normal, {rare}")
    task = experiment(tomllib.loads(found.config(table))).task
    assert task.train[1].sum() + task.evaluate[1].sum() == 40
    (tmp_path / "numbers.csv").write_text(
        "\n".join(["a,b,y", *[f"{a},{b},{int(text == rare) + 1}" for (a, b, _), text in zip(X, texts, strict=True)]])
    )
    assert recommend_csv(str(tmp_path / "numbers.csv"), "y")[0].loss.numbers == {"pos_weight": 9.0}
    (tmp_path / "zero.csv").write_text(
        "\n".join(["a,b,y", *[f"{a},{b},{int(text != rare)}" for (a, b, _), text in zip(X, texts, strict=True)]])
    )
    found, table = recommend_csv(str(tmp_path / "zero.csv"), "y")  # numbers stay what they are
    assert found.loss.numbers == {"pos_weight": pytest.approx(1 / 9, rel=1e-3)}
    assert experiment(tomllib.loads(found.config(table))).task.train[1].mean() > 0.8


@pytest.mark.parametrize("scale", [5e9, 1e30])
def test_numbers_that_no_int32_or_float32_square_holds(scale, tmp_path):
    amounts = np.round(scale * (3 + LINE))
    rows = [f"{1e40 * a},{b},{c},{int(amount)}" for (a, b, c), amount in zip(X.astype(float), amounts, strict=True)]
    (tmp_path / "my.csv").write_text("\n".join(["a,b,c,y", *rows]))
    found, table = recommend_csv(str(tmp_path / "my.csv"), "y")
    assert (found.kind, table["kind"]) == ("regression", "regression")
    inputs, targets = lo.data.csv(str(tmp_path / "my.csv"), "y").train
    assert inputs.dtype == targets.dtype == np.float32
    for values in (targets, inputs[:, 0]):
        assert values.mean() == pytest.approx(0, abs=1e-5)
        assert values.std() == pytest.approx(1, rel=1e-5)


def test_a_constant_column_of_a_table_stays_nothing(tmp_path):
    (tmp_path / "my.csv").write_text("a,b,y\n" + "".join(f"0.1,{i},{i}\n" for i in range(50)))
    assert np.abs(lo.data.csv(str(tmp_path / "my.csv"), "y").train[0][:, 0]).max() < 1e-6


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("red", "'a' is 'red', which is no finite number; give each of its texts a column of 0 and 1 (pandas.get_dummies does that)"),
        ("True", "write 1 and 0 instead"),
        ("2024-01-31", "write a date as a number, such as days since the first"),
        ("NA", "fill it, as with the mean of its column, or leave the line out"),
        ("", "fill it, as with the mean of its column, or leave the line out"),
    ],
)
def test_what_to_do_about_a_column_that_is_no_number(value, words, tmp_path):
    (tmp_path / "my.csv").write_text("a,b\n" + "1,2\n" * 5 + f"{value},3\n")
    with pytest.raises(ValueError, match=re.escape(words)):
        recommend_csv(str(tmp_path / "my.csv"), "b")


def test_the_tails_of_a_table_wider_than_long_are_the_targets_own():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(50, 100))
    outliers, none = lo.recommend(inputs=wide, targets=rng.standard_cauchy(50)), lo.recommend(inputs=wide, targets=rng.normal(size=50))
    assert (outliers.kind, none.kind) == ("regression_outliers", "regression")
    assert "of the targets (a linear fit of 100 columns to 50 rows tells nothing)" in outliers.facts[0]


def test_labels_that_the_loss_cannot_take_and_classes_that_may_be_counts_are_said():
    masks = 255 * (np.arange(256).reshape(4, 8, 8) % 2)
    images = np.zeros((4, 8, 8, 1))
    assert "the loss wants 0 and 1: targets == 255 has them so" in lo.recommend(inputs=images, targets=masks).facts[-1]
    with pytest.raises(ValueError, match=r"0 and 1, got .*: the labels are 0 and 255, .* targets == 255"):
        lo.recommend("segmentation", inputs=images, targets=masks)
    several = lo.recommend(inputs=X, targets=10 * np.arange(400) % 30)
    assert (
        "the labels are 0, 10, 20, and the loss wants 0 to 2: numpy.searchsorted(numpy.unique(targets), targets) has them so"
        in several.facts[-1]
    )
    counted = lo.recommend(inputs=X, targets=RNG.poisson(np.exp(2.5 + LINE / 3)))
    assert 'if they are classes, give the kind "multiclass"' in counted.facts[0]
    assert 'amounts "regression"' in lo.recommend(inputs=X, targets=np.arange(400) % 26).facts[0]


def test_other_spellings_of_a_kind_and_words_that_are_none():
    for word, kind in (("multi-class", "multiclass"), ("Multi-Label", "multilabel"), ("binary rare", "binary_rare")):
        assert lo.recommend(word).kind == kind
    with pytest.raises(ValueError, match=r"no kind 'sequence'; sequences of tokens are \"tokens\"; .* family \"rnn\""):
        lo.recommend("sequence")
    with pytest.raises(ValueError, match="a family of networks"):
        lo.recommend("transformer")


def test_a_kind_without_a_task_of_ours_has_a_template_or_an_error(lossopt, tmp_path):
    (tmp_path / "visits.csv").write_text("a,n\n" + "".join(f"{i % 7},{i % 3}\n" for i in range(60)))
    done = lossopt("recommend", "counts", "--write", "c.toml")
    assert done.returncode == 0, done.stderr
    assert "data.path and data.target are to be filled in" in done.stdout
    early = lossopt("train", "c.toml")
    assert (early.returncode, "data.path: cannot read my.csv: No such file" in early.stderr) == (2, True), early.stderr
    text = (tmp_path / "c.toml").read_text().replace("my.csv", "visits.csv").replace('target = "target"', 'target = "n"')
    (tmp_path / "c.toml").write_text(text)
    trained = lossopt("train", "c.toml", "--set", "run.steps=20", "--set", "schedule.warmup=2", "--set", "run.evaluate_every=10", "-q")
    assert trained.returncode == 0, trained.stderr
    failed = lossopt("recommend", "multi-label", "--write", "l.toml")
    assert (failed.returncode, (tmp_path / "l.toml").exists()) == (2, False)
    assert "no config to write: neither a task of ours nor a CSV file holds data of the kind multilabel" in failed.stderr
    assert lossopt("recommend", "multilabel").returncode == 0  # the recipe is an answer by itself
