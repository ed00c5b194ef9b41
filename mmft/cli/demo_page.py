"""The page of `mmft demo`: what is on it, and which button does what. The work is `cli.demo_work`'s.

Texts of models, data and users reach the page escaped, errors as a sentence in the page.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mmft.cli.console import number
from mmft.cli.demo_work import COMPLETION, TOKEN, VALUE, Outcome, Workshop
from mmft.cli.lone_pictures import BASE, TUNED, Said, Scores
from mmft.errors import ConfigError, DataError, RewardError
from mmft.report.word_diff import GONE, NEW, word_diff

logger = logging.getLogger(__name__)

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")
LOOK: dict[str, Any] = {
    # Fonts of the system: others would be fetched.
    "theme": gr.themes.Default(primary_hue="blue", neutral_hue="gray", font=FONTS, font_mono=MONO),
    "css_paths": Path(__file__).with_name("demo.css"),
}
GREEDY, SAMPLED = "the likeliest words", "drawn at random"
NOTHING = "nothing"
SHOWN_MISTAKES = (ConfigError, DataError, RewardError)


def build_page(workshop: Workshop) -> Any:
    """The page with its events; `launch` opens it."""
    run = workshop.run
    with gr.Blocks(title=f"{run.name} - mmft", analytics_enabled=False) as page:
        gr.Markdown(heading(workshop))
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                asked = _question(workshop)
                _examples(workshop, asked)
            with gr.Column(scale=3, min_width=280):
                outcome = gr.State(None)
                answers = gr.HTML(value=waiting(workshop), elem_id="answers")
                chosen = _explained(workshop)
                heat = gr.Image(
                    show_label=False, elem_id="heat", interactive=False, visible=False, format="png",
                    buttons=["download", "fullscreen"], alt_text="What the answer depends on.",
                )  # fmt: skip
                trouble = gr.HTML(value="", elem_id="trouble")
        _connect(workshop, asked, chosen, (outcome, answers, heat, trouble))
    return page


def heading(workshop: Workshop) -> str:
    """Title and subtitle, as Markdown."""
    settings = workshop.run.settings
    told = [str(settings[name]) for name in ("model_name_or_path", "dataset_name") if settings.get(name)]
    compared = "before and after training" if BASE in workshop.models else "a model without a run"
    lines = [f"## {_plain(workshop.run.name)}", _plain(", ".join([compared, *told]))]
    return "\n\n".join(lines)


def _question(workshop: Workshop) -> list[Any]:
    """What is asked, and how: the inputs of `Workshop.answer`, and the button."""
    picture: Any = gr.Image(
        label="picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=280,
        elem_id="picture", buttons=[],
    )  # fmt: skip
    # Gradio would open the file to no use, and complain of a broken one in its own words.
    picture.preprocess = lambda payload: None if payload is None else payload.path
    prompt = gr.Textbox(label="question", value=workshop.prompt, lines=2, elem_id="prompt")
    with gr.Accordion("for the rewards", open=False, visible=workshop.suite is not None):
        references = gr.Textbox(
            label="references", info="captions to compare with, one a line", lines=2, elem_id="references"
        )
        columns = gr.Textbox(
            label="columns", info='what else rewards read, as JSON: {"answer": "4"}', elem_id="columns"
        )
    # What was known of one picture says nothing about the next.
    picture.upload(lambda: ("", ""), None, [references, columns], show_progress="hidden")
    way = gr.Radio([GREEDY, SAMPLED], value=GREEDY, label="words", elem_id="way")
    temperature = gr.Slider(
        0.1, 2.0, value=1.0, step=0.1, label="temperature", visible=False, elem_id="temperature"
    )
    way.change(lambda chosen: gr.update(visible=chosen == SAMPLED), way, temperature, show_progress="hidden")
    button = gr.Button("Answer", variant="primary", elem_id="answer")
    return [picture, prompt, references, columns, way, temperature, button]


def _explained(workshop: Workshop) -> list[Any]:
    """What the heat map is about."""
    targets = [COMPLETION, TOKEN, *([VALUE] if workshop.has_critic else []), NOTHING]
    with gr.Row():
        which = gr.Radio(
            list(workshop.models), value=TUNED, label="heat map of", elem_id="which", min_width=160,
            visible=len(workshop.models) > 1,
        )  # fmt: skip
        target = gr.Radio(
            targets, value=COMPLETION, label="what it explains", elem_id="target", min_width=200
        )
        token = gr.Dropdown(
            [], label="token", visible=False, elem_id="token", type="index", min_width=120, filterable=False
        )
    return [which, target, token]


def _examples(workshop: Workshop, asked: Sequence[Any]) -> None:
    examples = workshop.examples()
    if not examples:
        return
    shown = gr.Dataset(
        components=[gr.Image(visible=False, type="filepath")],
        samples=[[each.picture] for each in examples],
        label="examples",
        type="index",
        samples_per_page=len(examples),
        elem_id="examples",
    )

    def choose(place: int) -> tuple[str, str, str, str]:
        chosen = examples[place]
        return chosen.picture, chosen.prompt, chosen.references, chosen.columns

    shown.click(choose, shown, list(asked[:4]), show_progress="hidden")


def _connect(
    workshop: Workshop, asked: Sequence[Any], chosen: Sequence[Any], shown: tuple[Any, Any, Any, Any]
) -> None:
    """The events: one at a time, for there is one copy of each model."""
    outcome, answers, heat, trouble = shown
    which, target, token = chosen
    *inputs, button = asked
    work: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}

    def ask(*given: Any) -> tuple[Any, str]:
        picture, *texts, way, temperature = given
        prompt, references, columns = (text or "" for text in texts)  # an empty box gives None
        drawn = float(temperature) if way == SAMPLED else 0.0
        return guarded(
            lambda: (
                found := workshop.answer(picture, prompt, references, columns, drawn),
                answer_page(found, workshop.remark),
            ),
            lambda message: (None, message),
        )

    def choose(found: Outcome | None, model: str, about: str) -> Any:
        texts = [] if found is None else found.of(model).answer.token_texts
        names = [f"{place + 1}: {text!r}" for place, text in enumerate(texts)]
        return gr.update(choices=names, value=names[0] if names else None, visible=about == TOKEN)

    def explain(found: Outcome | None, model: str, about: str, place: int | None) -> tuple[Any, str]:
        if found is None or about == NOTHING:
            return gr.update(visible=False), ""
        return guarded(
            lambda: (
                gr.update(value=str(workshop.explain(found, model, about, int(place or 0))), visible=True),
                "",
            ),
            lambda message: (gr.update(visible=False), message),
        )

    watched = [outcome, which, target]
    drawing: dict[str, Any] = {"fn": explain, "inputs": [*watched, token], "outputs": [heat, trouble], **work}
    button.click(ask, inputs, [outcome, answers], **work).then(
        choose, watched, token, show_progress="hidden"
    ).then(**drawing)
    for control in (which, target):
        control.input(choose, watched, token, show_progress="hidden").then(**drawing)
    token.input(**drawing)


def guarded(work: Callable[[], Any], otherwise: Callable[[str], Any]) -> Any:
    """The result, or what to show instead: a mistake in its own words, anything else with its name."""
    try:
        return work()
    except SHOWN_MISTAKES as error:
        return otherwise(error_page(str(error)))
    except Exception as error:
        logger.exception("the page's work failed")
        return otherwise(error_page(f"This failed: {type(error).__name__}: {error}"))


def error_page(message: str) -> str:
    """A mistake as HTML."""
    return f'<p class="mmft-error" role="alert">{html.escape(" ".join(message.split()))}</p>'


def waiting(workshop: Workshop) -> str:
    """What stands there before the first answer."""
    note = f'<p class="mmft-note">{html.escape(workshop.remark)}</p>' if workshop.remark else ""
    return f'<p class="mmft-note">Upload a picture or choose an example, then press Answer.</p>{note}'


def answer_page(outcome: Outcome, remark: str = "") -> str:
    """Answers side by side with their differences, and what they earned."""
    said = outcome.said
    cards = "".join(_card(each, said) for each in said)
    scores = [each.scores for each in said if each.scores is not None]
    notes = [*_remarks(scores), *([remark] if remark else [])]
    table = _reward_table([each.model for each in said], scores) if scores else ""
    told = "".join(f'<p class="mmft-note">{html.escape(note)}</p>' for note in notes)
    return f'<div class="mmft-answers">{cards}</div>{table}{told}'


def _card(own: Said, said: Sequence[Said]) -> str:
    total = "" if own.scores is None else f"<b>reward {number(own.scores.total).strip()}</b>"
    end = "" if own.answer.ended else ' <span class="mmft-note">(cut)</span>'
    return (
        f'<section class="mmft-answer" data-model="{own.model}"><h3>{own.model}{total}</h3>'
        f'<p class="mmft-caption">{_marked(own, said)}{end}</p></section>'
    )


def _marked(own: Said, said: Sequence[Said]) -> str:
    """The answer with what is only in it marked."""
    text = own.answer.text
    if len(said) < 2:
        return html.escape(text) or "(nothing)"
    skipped, tag = (NEW, "del") if own is said[0] else (GONE, "ins")
    parts = []
    for kind, words in word_diff(said[0].answer.text, said[1].answer.text):
        if kind != skipped:
            shown = html.escape(words)
            parts.append(f"<{tag}>{shown}</{tag}>" if kind in (GONE, NEW) else shown)
    return "".join(parts) or "(nothing)"


def _reward_table(models: Sequence[str], scores: Sequence[Scores]) -> str:
    heads = ["reward", "weight", *models, *(["change"] if len(models) == 2 else [])]
    rows = []
    for parts in zip(*(each.parts for each in scores), strict=True):
        name, weight = parts[0].name, parts[0].weight
        told = f"{weight:g}" if weight else "reported"
        rows.append(_line("", name, told, [each.value for each in parts]))
        for detail in dict.fromkeys(key for each in parts for key in each.details):
            found = [each.details.get(detail) for each in parts]
            rows.append(_line("detail", detail.removeprefix(f"{name}/"), "", found))
    rows.append(_line("total", "total", "", [each.total for each in scores]))
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    return (
        '<div class="mmft-scroll"><table class="mmft-rewards">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _remarks(scores: Sequence[Scores]) -> list[str]:
    """Why rewards did not judge, each reason once."""
    lines = [
        f"{part.name} {part.why}"
        + (", which can be given under \u201cfor the rewards\u201d" if part.needs else "")
        + ("; it is left out of the total." if part.weight else ".")
        for each in scores
        for part in each.parts
        if part.value is None
    ]
    return list(dict.fromkeys(lines))


def _line(kind: str, name: str, weight: str, values: Sequence[float | None]) -> str:
    cells = [html.escape(name), weight, *(number(value).strip() for value in values)]
    if len(values) == 2:
        before, after = values
        cells.append("" if before is None or after is None else f"{after - before:+.2f}")
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _plain(text: str) -> str:
    """For Markdown."""
    from mmft.trainers.tracked_samples import plain_markdown

    return plain_markdown(text)
