"""Runs in .venv-vllm: imports vLLM once, and forks a server for each line of its standard input; prints its process.

A line is a JSON object: ``arguments`` of the server, its environment ``variables``, the ``log`` that it writes to. A
server that is started plainly imports for half a minute, and so do its engine and its worker, which vLLM spawns on a
CPU; here they are forked too. Nothing else of vLLM is touched.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys

import vllm.entrypoints.openai.api_server
import vllm.lora.punica_wrapper.punica_cpu
import vllm.model_executor.models.llama
import vllm.v1.engine.async_llm
import vllm.v1.engine.core
import vllm.v1.executor.uniproc_executor
import vllm.v1.worker.cpu_worker

_context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: _context("fork" if method == "spawn" else method)

MODULE = vllm.entrypoints.openai.api_server.__name__

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a server that was killed
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if (process := os.fork()) == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(asked["variables"])
        sys.argv = [MODULE, *asked["arguments"]]
        os.setpgid(0, 0)
        runpy.run_module(MODULE, run_name="__main__")
        os._exit(0)
    os.setpgid(process, process)  # so that all that it starts can be killed at once
    print(process, flush=True)
