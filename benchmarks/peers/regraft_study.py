"""A study with regraft: `python regraft_study.py STUDY.yaml STORE`. Run as a process of its own, like the peers."""

from __future__ import annotations

import json
import sys

import regraft

if __name__ == "__main__":
    study = regraft.Study.from_yaml(sys.argv[1])
    results = regraft.run_study(study, regraft.Store(sys.argv[2]))
    for gap in results.missing:
        print(f"missing: {gap.row}, seed {gap.seed}: {gap.reason}", file=sys.stderr)
    accuracies = {f"{cell.row}, seed {cell.seed}": cell.accuracy for cell in results.cells}
    print(json.dumps({"accuracy": sum(accuracies.values()) / len(accuracies), "cells": accuracies}))
    sys.exit(bool(results.missing))
