"""Reports known vulnerabilities of the versions in constraints.txt; fails on those that are known to be exploited.

Standard library and pip-audit alone: python .ci/audit.py PIP_AUDIT. Which are exploited is what CISA's catalogue says.
Where a service cannot be reached, that is one line, and no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

EXPLOITED = "https://www.cisa.gov/sites/default/files/feeds/known_exploited_vulnerabilities.json"
VERSIONS = Path(__file__).parents[1] / "constraints.txt"


def vulnerabilities(pip_audit: str) -> list[tuple[str, set[str], str]]:
    """Package with its version, all names of the vulnerability, and the versions that mend it.

    Raises:
      OSError: the advisories could not be had.
    """
    command = [pip_audit, f"--requirement={VERSIONS}", "--no-deps", "--disable-pip", "--format=json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner=off"], capture_output=True, text=True, check=False, timeout=300
        )
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise OSError((done.stderr.strip().splitlines() or ["it said nothing"])[-1]) from None
    except subprocess.TimeoutExpired:
        raise OSError("no answer in 300 s") from None
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        raise OSError(f"it knows none of {len(packages)} packages")
    if skipped:
        print(f"Not audited, since the advisory service does not know them: {', '.join(skipped)}")
    return [
        (f"{package['name']} {package['version']}", {found["id"], *found["aliases"]}, ", ".join(found["fix_versions"]))
        for package in packages
        for found in package.get("vulns", ())
    ]


def exploited() -> set[str]:
    """The CVEs that are known to be exploited. Raises OSError if the catalogue could not be had."""
    with urllib.request.urlopen(EXPLOITED, timeout=30) as answer:
        return {entry["cveID"] for entry in json.load(answer)["vulnerabilities"]}


def main() -> int:
    """1 if a known exploited vulnerability is there."""
    try:
        found = vulnerabilities(sys.argv[1])
    except OSError as error:
        print(f"The advisory service cannot be reached, nothing was audited: {error}")
        return 0
    print(f"{len(found)} known vulnerabilities in {VERSIONS.name}")
    try:
        known = exploited() if found else set()
    except (OSError, ValueError) as error:
        print(f"The catalogue of exploited vulnerabilities cannot be reached, so that none counts as one: {error}")
        known = set()
    bad = [names & known for _, names, _ in found]
    for (package, names, mended), exploit in zip(found, bad, strict=True):
        says = "EXPLOITED: " if exploit else ""
        print(f"  {says}{package}: {', '.join(sorted(names))}; mended in {mended or 'no version'}")
    return 1 if any(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
