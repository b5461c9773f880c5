"""The report's files, and its tables of several policies."""

import json

from evaluations import answered

from entropy_rl.evaluation import report
from entropy_rl.record import jsonl


def test_report(tmp_path):
    def result(name, rights):
        samples = [[answered(r, i, s, answer=str(r)) for s, r in enumerate(group)] for i, group in enumerate(rights)]
        greedy = [answered(group[0], i, -1) for i, group in enumerate(rights)]
        return report.Result(name, "sums", greedy, samples)

    before, after = [[0.0, 0.0, 1.0, 0.0]] * 6, [[1.0, 1.0, 1.0, 0.0]] * 6
    text = report.write(tmp_path / "out", [result("old", before), result("new", after)], {"k": 4})
    assert "| sums | old | 6 | 0.0 [0.0, 39.0] | 25.0 [25.0, 25.0] | 100.0 [100.0, 100.0] |" in text
    assert "| answers | answer entropy | tokens |" in text and "| 2.00 [2.00, 2.00] | 0.56 [0.56, 0.56] | 3.0 |" in text
    assert "new against old on sums: greedy +100.0 [+100.0, +100.0], sampled +50.0 [+50.0, +50.0] points" in text
    rows = jsonl.read(tmp_path / "out" / "responses.jsonl")
    assert len(rows) == 2 * 6 * 5 and rows[0]["sample"] == "greedy" and rows[6]["sample"] == 0
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["results"][1]["pass@2"][0] == 1.0 and saved["about"] == {"k": 4}
    assert (tmp_path / "out" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "old against" not in text and (tmp_path / "out" / "table.md").read_text().startswith(text)
