"""Run by test_processes under `torch.distributed.run`: commands of rlobj, one after the other."""

import json
import sys

from rlobj.cli import main

for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
