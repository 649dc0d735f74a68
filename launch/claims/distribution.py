"""The output is a distribution: its probabilities can be taken at their word, and drawing from it does not repeat."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

TEMPERATURES = (0.0, 0.4, 0.7, 1.0, 1.3)
PROMPTS = ("def ", "class ", "import ", '"""Return ')
RUN = 3  # Tokens: runs of three are counted.


def run(setup: Setup) -> Outcome:
    """Compare probabilities with frequencies on held-out text, and write at several temperatures."""
    import dataclasses
    import itertools

    from model import build
    from model.generate import Sampling
    from train.checkpoint import restore_params
    from train.data.pipeline import held_out_batches
    from train.data.sources import open_corpus
    from train.distribution import calibration, distinct
    from train.writing import write

    restored = restore_params(setup.checkpoint)
    module, config, tokenizer = build(restored.config), restored.config, restored.tokenizer
    batches = held_out_batches(open_corpus(config.data), tokenizer, config)
    judged = calibration(module, restored.params, itertools.islice(batches, 4 if setup.fast else 20))
    tokens, seeds = (48, 1) if setup.fast else (128, 4)
    prompts = [prompt for prompt in PROMPTS for _ in range(seeds)]
    variety = {}
    for temperature in TEMPERATURES:
        samples = write(
            module, restored.params, tokenizer, prompts, Sampling(temperature=temperature),
            max_tokens=tokens, seeds=range(len(prompts)),
        )  # fmt: skip
        variety[temperature] = distinct([tokenizer.encode(sample.text) for sample in samples], RUN)
    checks = [
        at_most("mean difference between probability and frequency of the likeliest token", judged.error, 0.05),
        at_least(
            f"different runs of {RUN} tokens, drawn at temperature 1 less written greedily",
            variety[1.0] - variety[0.0], 0.2,
        ),
    ]  # fmt: skip
    bins = zip(judged.tokens, judged.probability, judged.right, strict=True)
    reliability = [{"x": p, "y": r, "series": "this network"} for count, p, r in bins if count >= 20]
    reliability += [{"x": x, "y": x, "series": "at its word"} for x in (0.0, 1.0)]
    charts = [
        Chart("How often the likeliest token comes", "its probability", "frequency", reliability),
        Chart(
            "Different runs of three tokens in a text", "temperature", "share",
            [{"x": temperature, "y": share} for temperature, share in variety.items()],
        ),
    ]  # fmt: skip
    figures = {"calibration": dataclasses.asdict(judged), "error": judged.error, "distinct_3": variety}
    return Outcome(
        checks, figures, charts, ["Temperature 0 always takes the likeliest token, and soon goes in circles."]
    )
