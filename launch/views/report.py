"""The report of a run: one page with its curves, its samples, what it predicts and where it looks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.views.alignment import ALIGNMENT_TOLD, Translation, alignment_charts
from launch.views.attention import attention_charts, attention_told
from launch.views.attention_panels import Seen
from launch.views.page import BLUE, CHART_CONFIG, ORANGE, embed, escape, page
from launch.views.pieces import visible

if TYPE_CHECKING:
    import altair as alt

_STYLE = """
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 18px 0; }
.fact { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.fact b { display: block; font-size: 20px; font-weight: 600; letter-spacing: -0.01em; overflow-wrap: anywhere; }
.fact span { color: var(--quiet); font-size: 13px; }
.fact.main { border-color: var(--blue); } .fact.main b { color: var(--blue); }
table.samples { border-collapse: collapse; width: 100%; }
table.samples td { border-top: 1px solid var(--line); padding: 8px 10px 8px 0; vertical-align: top; }
table.samples td:first-child { color: var(--quiet); white-space: nowrap; text-align: right; width: 1%; }
table.samples pre { margin: 0; border: 0; background: none; padding: 0; } table.samples mark { background: none;
  color: var(--quiet); }
table.scores, table.pairs { border-collapse: collapse; }
table.scores td, table.scores th, table.pairs td, table.pairs th { border-top: 1px solid var(--line);
  padding: 6px 18px 6px 0; text-align: left; vertical-align: top; }
table.scores td + td { text-align: right; font-variant-numeric: tabular-nums; } table.pairs { width: 100%; }
table.pairs td { width: 33%; } table.pairs pre { margin: 0; border: 0; background: none; padding: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 10px; margin: 10px 0 24px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; }
.card h3 { margin: 0 0 6px; font: 600 14px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.card h3 span { float: right; font: 12px system-ui, sans-serif; color: var(--quiet); }
.row { display: grid; grid-template-columns: 76px 1fr 40px; gap: 6px; align-items: center; font-size: 12px; }
.row code { background: none; padding: 0; font-size: 12px; white-space: pre; overflow: hidden;
  text-overflow: ellipsis; }
.row .bar { height: 9px; border-radius: 2px; background: var(--blue); min-width: 1px; }
.row.chosen .bar { background: var(--orange); } .row.chosen code { font-weight: 700; }
.row .share { text-align: right; color: var(--quiet); font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Translations:
    """What a translator made of held-out sentences."""

    languages: tuple[str, str]  # from, to
    sentences: int  # how many were scored
    scores: Mapping[str, Mapping[str, Any]]  # name -> what `train.translation.score` returns; baselines and the network
    best: str  # which of them is the result
    shown: Sequence[Mapping[str, str]]  # {"source", "translation", "reference"}
    view: Translation  # how one of them was translated
    reference: str  # and how it should have been


@dataclass(frozen=True)
class Report:
    """What a report shows; every text may hold anything, markup included."""

    config: Mapping[str, Any]  # the resolved config, as in config.json
    command: str  # the exact command of the run
    data: str  # what it was trained on, in words
    metrics: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl, each with "step"
    samples: Sequence[Mapping[str, Any]]  # {"step", "prompt", "text"}
    baselines: Mapping[str, float]  # name -> bits per byte on the held-out text
    bits_per_byte: float  # the model's own, at the end
    tables: Sequence[Mapping[str, Any]]  # {"prompt", "tokens": [{"text", "logprob", "top": [{"text", "logprob"}]}]}
    attention: Seen | None  # of a held-out text; None for a network without attention
    structure_svg: str
    facts: Sequence[tuple[str, str]]  # (name, value) such as ("parameters", "4.1 M")
    translations: Translations | None = None  # of a network that translates


def report_page(report: Report) -> str:
    """The report as a self-contained HTML page.

    Raises ValueError if the attention weights are not those of attention over the tokens.
    """
    name = str(report.config.get("name", "run"))
    config = json.dumps(report.config, indent=2, ensure_ascii=False)
    sections = [
        f'<h1>{escape(name)}</h1>\n<p class="quiet">{escape(report.data)}</p>',
        _headline(report),
        f"<h2>Learning</h2>\n{_learning(report)}",
        _translations(report.translations) if report.translations else "",
        f"<h2>Samples through training</h2>\n{_samples(report.samples)}" if report.samples else "",
        f"<h2>What comes next</h2>\n{_tables(report.tables)}" if report.tables else "",
        _alignment(report.translations) if report.translations else "",
        _attention(report.attention) if report.attention is not None else "",
        f'<h2>The network</h2>\n<div class="drawing">{report.structure_svg}</div>',
        f"<h2>How to make it again</h2>\n<pre>{escape(report.command)}</pre>",
        f"<details><summary>The resolved config</summary><pre>{escape(config)}</pre></details>",
    ]
    return page(f"{name}: report", "\n".join(sections), _STYLE)


def _headline(report: Report) -> str:
    facts = []
    if report.translations:
        best = report.translations.scores[report.translations.best]
        words = f"{report.translations.best}, {report.translations.sentences} held-out sentences"
        facts += [("main", f"{name}, {words}", f"{best[name.lower()]:.1f}") for name in ("BLEU", "chrF")]
    kind = "" if report.translations else "main"
    facts.append((kind, "bits per byte, held-out text", f"{report.bits_per_byte:.3f}"))
    if report.baselines:
        best = min(report.baselines, key=lambda name: report.baselines[name])
        share = 1 - report.bits_per_byte / report.baselines[best]
        words = f"{'fewer' if share >= 0 else 'MORE'} bits than {best}, the best baseline"
        facts.append(("main", words, f"{abs(share):.0%}"))
    facts += [("", fact, value) for fact, value in report.facts]
    cards = "".join(
        f'<div class="fact {kind}"><b>{escape(value)}</b><span>{escape(fact)}</span></div>'
        for kind, fact, value in facts
    )
    return f'<div class="facts">{cards}</div>'


def _learning(report: Report) -> str:
    charts: list[tuple[str, str, list[dict[str, Any]], Mapping[str, float]]] = []
    if report.translations:
        scores = report.translations.scores
        for name, title in (("bleu", "BLEU: higher is better"), ("chrf", "chrF: higher is better")):
            if rows := _series(report.metrics, {f"eval/{name}": "held out"}):
                rules = {of: values[name] for of, values in scores.items() if of != "greedy"}
                charts.append((name, title, rows, rules))
    if bits := _series(report.metrics, {"train/bits_per_byte": "training", "eval/bits_per_byte": "held out"}):
        charts.append(("bits", "Bits per byte: lower is better", bits, report.baselines))
    if loss := _series(report.metrics, {"train/loss": "training", "eval/loss": "held out"}):
        charts.append(("loss", "Loss (nats per token)", loss, {}))
    drawn = [embed(f"learning-{name}", _curves(title, rows, rules)) for name, title, rows, rules in charts]
    small = []
    for metric, title in (
        ("train/learning_rate", "Learning rate"),
        ("train/grad_norm", "Gradient norm"),
        ("train/tokens_per_second", "Tokens per second"),
        ("train/mfu", "Share of peak (MFU)"),
    ):
        if rows := _series(report.metrics, {metric: "training"}):
            small.append(embed(f"small-{metric.rpartition('/')[2]}", _small(title, rows)))
    flow = 'style="display:flex;flex-wrap:wrap;gap:8px 36px;max-width:100%"'
    return f"<div {flow}>{''.join(drawn)}</div><div {flow}>{''.join(small)}</div>"


def _series(metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The finite values of the metrics `names` (metric -> what to call it), one row a point."""
    return [
        {"step": line["step"], "value": line[metric], "series": series}
        for line in metrics
        for metric, series in names.items()
        if isinstance(line.get(metric), int | float) and math.isfinite(line[metric])
    ]


def _curves(title: str, rows: list[dict[str, Any]], rules: Mapping[str, float]) -> dict[str, Any]:
    """Curves over the steps, with a labelled horizontal rule for each of `rules`; hovering reads the values off."""
    import altair as alt

    top = _upper_end([row["value"] for row in rows], rules)
    low = min([row["value"] for row in rows] + list(rules.values()))
    scale = alt.Scale(domain=[low - 0.05 * (top - low), top], nice=False, zero=False)
    names = list(dict.fromkeys(row["series"] for row in rows))
    color = alt.Color("series:N", title=None, legend=alt.Legend(orient="top"), scale=alt.Scale(
        domain=names, range=[{"training": BLUE, "held out": ORANGE}[name] for name in names]))  # fmt: skip
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=6)),
        y=alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=6)),
        color=color,
    )
    held_out = alt.datum.series == "held out"
    layers: list[alt.Chart] = [
        base.mark_line(strokeWidth=1.5, clip=True),
        base.transform_filter(held_out).mark_circle(size=36, opacity=1, clip=True),
        base.mark_circle(size=120, opacity=0, clip=True).encode(
            tooltip=["series:N", "step:Q", alt.Tooltip("value:Q", format=".4f", title="value")]
        ),
    ]
    if rules:
        layers += _rules(rules, scale)
    return _finished(alt.layer(*layers).properties(width=520, height=300, title=title))


def _upper_end(values: Sequence[float], rules: Mapping[str, float]) -> float:
    """Where the value axis ends: in full, the steep first steps would squeeze everything that is worth comparing."""
    return max([float(np.quantile(values, 0.95)), *rules.values()]) * 1.03


def _rules(rules: Mapping[str, float], scale: alt.Scale) -> list[alt.Chart]:
    import altair as alt

    height = 300
    low, top = (float(end) for end in scale.to_dict()["domain"])
    labels, above = [], -math.inf
    for name, value in sorted(rules.items(), key=lambda rule: -rule[1]):
        # Two baselines that nearly agree would print their names over each other, so the lower one moves down.
        above = max(above + 13, (top - value) / (top - low) * height)
        labels.append({"name": f"{name} {value:.2f}", "value": value, "place": above})
    base = alt.Chart(alt.InlineData(labels))
    return [
        base.mark_rule(strokeDash=[5, 4], stroke="currentColor", opacity=0.5).encode(y=alt.Y("value:Q", scale=scale)),
        base.mark_text(align="left", dx=6, fontSize=11, color="currentColor").encode(
            x=alt.value(520), y=alt.Y("place:Q", scale=None), text="name:N"
        ),
    ]


def _small(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import altair as alt

    chart = (
        alt.Chart(alt.InlineData(rows))
        .mark_line(strokeWidth=1.2, color=BLUE, point=alt.OverlayMarkDef(opacity=0, size=80))
        .encode(
            x=alt.X("step:Q", title=None, axis=alt.Axis(grid=False, tickCount=4)),
            y=alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=4, format="~s" if rows[-1]["value"] > 10 else "~g")),
            tooltip=["step:Q", alt.Tooltip("value:Q", format=".4g")],
        )
        .properties(width=230, height=110, title=alt.TitleParams(title, fontSize=12))
    )
    return _finished(chart)


def _finished(chart: alt.TopLevelMixin) -> dict[str, Any]:
    return chart.to_dict() | {"config": CHART_CONFIG}


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>step {escape(sample['step'])}</td><td><pre>{_sample(sample)}</pre></td></tr>" for sample in samples
    )
    return f'<table class="samples">{rows}</table>'


def _sample(sample: Mapping[str, Any]) -> str:
    if "reference" not in sample:
        return f"<mark>{escape(sample['prompt'])}</mark>{escape(sample['text'])}"
    source, text, reference = (escape(sample[name]) for name in ("prompt", "text", "reference"))
    return f"<mark>{source}</mark>\n{text}\n<mark>{reference}</mark>"


def _translations(translations: Translations) -> str:
    """The scores as a table, then translations beside their sources and references."""
    scores = "".join(
        f"<tr><td>{escape(name)}</td><td>{values['bleu']:.1f}</td><td>{values['chrf']:.1f}</td></tr>"
        for name, values in translations.scores.items()
    )
    signatures = {values[f"{name}_signature"] for values in translations.scores.values() for name in ("bleu", "chrf")}
    rows = "".join(
        "<tr>" + "".join(f"<td><pre>{escape(pair[name])}</pre></td>" for name in ("source", "translation", "reference"))
        + "</tr>"
        for pair in translations.shown
    )  # fmt: skip
    source, target = translations.languages
    return f"""<h2>Translations of held-out sentences</h2>
<table class="scores"><tr><th></th><th>BLEU</th><th>chrF</th></tr>{scores}</table>
<p class="quiet">{translations.sentences} sentences that were not trained on. copy: the source as it is; dictionary: for
each token of the source the likeliest one of the translation, by IBM model 1 on the training pairs.
{escape(", ".join(sorted(signatures)))}</p>
<table class="pairs"><tr><th>{escape(source)}</th><th>{escape(target)}, translated ({escape(translations.best)})</th>
<th>{escape(target)}, reference</th></tr>{rows}</table>"""


def _alignment(translations: Translations) -> str:
    seen = translations.view.alignment
    return f"""<h2>What each word was written from</h2>
<pre>{escape("".join(seen.keys.texts))}</pre>
<pre>{escape("".join(seen.queries.texts))}</pre>
<p class="quiet">Reference: {escape(translations.reference)}</p>
{alignment_charts("alignment", translations.view)}
{_told(ALIGNMENT_TOLD)}"""


def _tables(tables: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        '<p class="quiet">One card for each token that was written, in order: the likeliest tokens at that place and '
        "their probabilities; the chosen one is orange.</p>"
    ]
    for table in tables:
        parts.append(f"<pre>{escape(table['prompt'])}</pre>")
        parts.append(f'<div class="cards">{"".join(_card(token) for token in table["tokens"])}</div>')
    return "\n".join(parts)


def _card(token: Mapping[str, Any]) -> str:
    """One place in the text: what was chosen and what else was likely."""
    top = list(token["top"])
    if token["text"] not in [other["text"] for other in top]:
        top.append(token)
    rows = ""
    for other in top:
        share = math.exp(other["logprob"])
        kind = "row chosen" if other["text"] == token["text"] else "row"
        rows += (
            f'<div class="{kind}"><code title="{escape(other["text"])}">{escape(visible(other["text"]))}</code>'
            f'<div class="bar" style="width:{share:.1%}"></div><span class="share">{share:.0%}</span></div>'
        )
    chosen = math.exp(token["logprob"])
    return f'<div class="card"><h3>{escape(visible(token["text"]))}<span>{chosen:.0%}</span></h3>{rows}</div>'


def _attention(seen: Seen) -> str:
    layers, heads = seen.weights_LNTS.shape[:2]
    return f"""<h2>Where it looks</h2>
<p class="quiet">A held-out text, {layers} layers × {heads} heads. Click a small picture to pick its head; hover a token
or a cell to see where that token looks.</p>
<pre>{escape("".join(seen.queries.texts))}</pre>
{attention_charts("attention", seen)}
{_told(attention_told(seen))}"""


def _told(paragraphs: Sequence[str]) -> str:
    return "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
