"""What becomes of 500 cases where a fifth of the calls fails, in every way that is known of endpoints.

All cases are asked through the agent of endpoints and all its wrappers, twice with one cache. Each prediction is held
against what the server said of that very picture, each case against the calls that reached the server for it.

    python benchmarks/faults.py [--cases 500] [--share .2] [--concurrency 16]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from endpoint_calls import TASK, cases, timed, wrapped  # adds the folder of the server to the path
from fault_server import FAULTS, FaultServer, picture_digest

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.case import Case
from secondlook.agents.chat import Endpoint
from secondlook.agents.cost import Account, Budget, Limits
from secondlook.agents.picture_url import picture_url
from secondlook.agents.prediction import Outcome, Prediction
from secondlook.agents.wrappers import Patience


def invented(server: FaultServer, asked: Sequence[Case], outcomes: Sequence[Outcome]) -> int:
    """Count the predictions that say another label or confidence than the server said of their picture."""
    wrong = 0
    for case, outcome in zip(asked, outcomes, strict=True):
        if isinstance(outcome, Prediction):
            said = server.answer_of(picture_digest(picture_url(case.photo.pixels(), 768)))
            # "95%" is an answer too: the label that the server would have said, and .95.
            label, sure = TASK.labels[outcome.top], outcome.scores[outcome.top]
            wrong += label != said.label or round(sure, 6) not in (said.confidence, 0.95)
    return wrong


def look(server: FaultServer, asked: Sequence[Case], outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """Count what came of a run, and what reached the server."""
    per_case = Counter(each.picture for each in server.asked)
    return {
        "seconds": round(seconds, 2),
        "outcomes": len(outcomes),
        "predictions": sum(isinstance(outcome, Prediction) for outcome in outcomes),
        "invented": invented(server, asked, outcomes),
        "calls": server.total,
        "most_calls_a_case": max(per_case.values(), default=0),
        "answers_paid_twice": sum(times > 1 for times in server.paid.values()),
        "calls_in_costs": sum(outcome.cost.vlm_calls for outcome in outcomes),
    }


def main() -> None:
    """Run twice and print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    asked = cases(args.cases)
    with (
        tempfile.TemporaryDirectory() as folder,
        AnswerCache(Path(folder)) as cache,
        FaultServer(labels=TASK.labels, share=args.share, silence_s=60, retry_after="1") as server,
    ):
        endpoint = Endpoint(base_url=server.base_url, concurrency=args.concurrency, timeout_s=2)
        patience = Patience.of(endpoint)
        for number in (1, 2):
            account = Account(Budget(per_run=Limits(usd=1e6)))
            seconds, outcomes = timed(wrapped(endpoint, account, cache, patience), asked)
            row = {"run": number, "cases": args.cases, "share": args.share, "kinds": len(FAULTS)}
            row |= look(server, asked, outcomes, seconds)
            print(json.dumps({**row, "calls_in_account": account.run.spent.calls, "kept": len(cache)}), flush=True)
            failed = Counter(outcome.error[:90] for outcome in outcomes if not isinstance(outcome, Prediction))
            print(json.dumps({"failures": dict(failed.most_common())}), flush=True)
            for count in (server.calls, server.paid, server.asked):
                count.clear()


if __name__ == "__main__":
    main()
