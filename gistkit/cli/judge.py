"""`gistkit judge`: its options, checked before anything slow is imported."""

from pathlib import Path
from typing import Annotated

import typer

from gistkit.errors import OptionError

judge = typer.Typer(name="judge", no_args_is_help=False)

Model = Annotated[str, typer.Option(metavar="NAME", help="The judge.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Of the endpoint; also OPENAI_BASE_URL. [default: OpenAI's own]"
    ),
]
ApiKeyEnv = Annotated[
    str, typer.Option(metavar="VAR", help="The environment variable that holds the API key.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Draws who is shown first.")]
BothOrders = Annotated[
    bool, typer.Option("--both-orders", help="Judge each pair in both orders; unequal is a tie.")
]
Temperature = Annotated[float, typer.Option(metavar="T", help="Of the judge.")]
MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Longest verdict. [default: the endpoint's]")
]
Structured = Annotated[
    bool, typer.Option(help="Ask for a JSON schema; given up where the endpoint refuses it.")
]
Concurrency = Annotated[int, typer.Option(metavar="N", help="Requests at once.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds for one request.")]
Retries = Annotated[
    int, typer.Option(metavar="N", help="Further requests where one failed; twice, if need be.")
]
Backoff = Annotated[
    float,
    typer.Option(
        metavar="S", help="Seconds to wait after an error; doubles. Retry-After comes first."
    ),
]
InputPrice = Annotated[
    float | None,
    typer.Option(
        metavar="USD",
        help="Price of a million tokens asked. [default: the published rate for the default model]",
    ),
]
OutputPrice = Annotated[
    float | None, typer.Option(metavar="USD", help="Price of a million tokens answered.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked; ask nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Report as one JSON object.")]
Force = Annotated[
    bool, typer.Option("--force", help="Start anew where a results file is already there.")
]

MODEL = "gpt-3.5-turbo"


@judge.callback(invoke_without_command=True)
def one(
    context: typer.Context,
    a: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers: CSV (x,y_pred,y_true).")
    ] = None,
    a_name: Annotated[str, typer.Option(metavar="NAME", help="What to call them.")] = "a",
    b: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Others to the same examples.")
    ] = None,
    b_name: Annotated[str, typer.Option(metavar="NAME", help="What to call them.")] = "b",
    results_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of verdicts, as published.")
    ] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="Judge the first N pairs; 0: all.")
    ] = 256,
    seed: Seed = 42,
    both_orders: BothOrders = False,
    model: Model = MODEL,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = None,
    structured: Structured = True,
    concurrency: Concurrency = 8,
    timeout: Timeout = 60.0,
    retries: Retries = 5,
    backoff: Backoff = 1.0,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    dry_run: DryRun = False,
    json: Json = False,
    force: Force = False,
) -> None:
    """Let a language model choose between two models' answers, pair by pair.

    Any endpoint that speaks OpenAI's chat API. Every verdict is kept at once, so the same command
    goes on after Ctrl-C or an error, and asks only what is left. Pairs without a verdict are
    listed; they count as nothing, never as ties.

    \b
    gistkit judge --a gist.csv --a_name gist --b full.csv --b_name full --results_file gist.json
    gistkit judge report gist.json
    gistkit judge all data/results/model_outputs --out data/results/chatgpt
    """
    if context.invoked_subcommand is not None:
        return
    if a is None or b is None or results_file is None:
        raise OptionError("nothing to judge: give --a FILE, --b FILE and --results_file FILE")
    from gistkit.cli.judge_run import Asked, judge_one

    asked = Asked(
        model=model,
        base_url=base_url,
        api_key_env=api_key_env,
        seed=seed,
        both_orders=both_orders,
        temperature=temperature,
        max_tokens=max_tokens,
        structured=structured,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        input_price=input_price,
        output_price=output_price,
        n=n,
        dry_run=dry_run,
        force=force,
    )
    judge_one(asked, a, b, (a_name, b_name), results_file, as_json=json)


@judge.command("all")
def sweep(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds MODEL-gist-1/outputs-3000-*.csv and so on.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results files go.")],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A folder or a model; may be repeated. [default: all]"),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="seen, unseen, human; may be repeated. [default: all]"),
    ] = None,
    n: Annotated[int, typer.Option("--n", metavar="N", help="Pairs of each; 0: all.")] = 0,
    seed: Seed = 42,
    both_orders: BothOrders = False,
    model: Model = MODEL,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = None,
    structured: Structured = True,
    concurrency: Concurrency = 8,
    timeout: Timeout = 60.0,
    retries: Retries = 5,
    backoff: Backoff = 1.0,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Judge every model, k and split against its positive control, as published.

    Comparisons whose results file is complete are skipped, the published ones too (also .json.gz).
    """
    from gistkit.cli.judge_run import Asked, judge_all

    asked = Asked(
        model=model,
        base_url=base_url,
        api_key_env=api_key_env,
        seed=seed,
        both_orders=both_orders,
        temperature=temperature,
        max_tokens=max_tokens,
        structured=structured,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        input_price=input_price,
        output_price=output_price,
        n=n,
        dry_run=dry_run,
        force=False,
    )
    judge_all(asked, folder, out, names=only or (), splits=split or (), as_json=json)


@judge.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results files; also .gz, .xz.")
    ],
    json: Json = False,
) -> None:
    """Wins, ties and losses with exact intervals; position bias; agreement between judges.

    Intervals are Clopper and Pearson's, 95 %. Files that judge the same pairs are compared: Cohen's
    kappa. Where the scores that a file stores are not those of its verdicts, both are shown.
    """
    from gistkit.cli.judge_report import report_files

    report_files(files, as_json=json)
