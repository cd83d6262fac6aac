"""Ready-made jobs: valid settings, known fields, scripts that do as told."""

import json
import os
import pathlib
import signal
import subprocess

import remote_files
import tensorflow as tf
import yaml

from jest_tf import cli, config

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
GCLOUD = """#!/bin/bash
echo "$@" >>calls
case "$*" in
  *" describe "*)
    state=$(head -1 states)
    sed -i 1d states
    [[ $state == NONE ]] && exit 1
    echo "$state" ;;
  "storage ls "*) [[ ! -s states ]] ;;
  *" create "*)
    for word in "$@"; do
      case $word in
        --metadata-from-file=startup-script=*) cp "${word##*=}" startup ;;
      esac
    done ;;
esac
"""


def containers(job):
    """The containers of a JobSet or a Vertex job."""
    if "workerPoolSpecs" in job:
        return [pool["containerSpec"] for pool in job["workerPoolSpecs"]]
    return [
        container
        for part in job["spec"]["replicatedJobs"]
        for container in part["template"]["spec"]["template"]["spec"][
            "containers"
        ]
    ]


class DeployTestCase(remote_files.Local, tf.test.TestCase):
    def script(self, name, text):
        path = pathlib.Path(self.folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def read(self, name):
        return pathlib.Path(self.folder, name).read_text()


class JobsTest(DeployTestCase):
    jobs = {
        path.name: yaml.safe_load(path.read_text())
        for path in sorted(DEPLOY.glob("*.yaml"))
    }

    def test_their_arguments_are_those_of_a_run(self):
        for name, job in self.jobs.items():
            for container in containers(job):
                with self.subTest(name):
                    flags = cli.parser().parse_args(container["args"])
                    self.assertStartsWith(flags.workdir, "gs://")
                    recipe = str(ROOT / flags.config)
                    settings = config.load_config(recipe, flags.set)
                    strategy = settings.distribution.strategy
                    self.assertNotEqual(strategy, "default")
                    # The image and the bucket have no other files.
                    self.assertStartsWith(settings.data.vocabulary, "gs://")
                    # Else every start on JAX compiles the step again.
                    cache = {
                        "name": "JAX_COMPILATION_CACHE_DIR",
                        "value": "gs://BUCKET/runs/jax-cache",
                    }
                    self.assertEqual(container["env"], [cache])
                    # As many rows a chip as the paper's, on 8 chips.
                    sizes = settings.selection.sizes()
                    self.assertEqual(sizes, (8 * 640, 8 * 128))

    def test_workers_know_each_other(self):
        (container,) = containers(self.jobs["jobset-gpu.yaml"])
        self.script("deploy/entrypoint.sh", 'echo "$TF_CONFIG"; echo "$@" >&2')
        done = subprocess.run(
            [*container["command"], *container["args"]],
            cwd=self.folder,
            env={**os.environ, "JOB_COMPLETION_INDEX": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(
            json.loads(done.stdout),
            {
                "cluster": {
                    "worker": [
                        f"jest-gpu-worker-0-{number}.jest-gpu:2222"
                        for number in range(2)
                    ]
                },
                "task": {"type": "worker", "index": 1},
            },
        )
        self.assertEqual(done.stderr.split(), container["args"])


class EntrypointTest(DeployTestCase):
    def start(self, *arguments, **environment):
        return subprocess.Popen(
            ["bash", str(DEPLOY / "entrypoint.sh"), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )

    def test_it_runs_again_on_exit_code_75_alone(self):
        self.script("codes", "75\n75\n3\n")
        command = self.script(
            "command",
            "#!/bin/bash\necho $@ >>said\ncode=$(head -1 codes)\n"
            "sed -i 1d codes\nexit $code\n",
        )
        process = self.start("train", "a b", JEST_TF=command)
        process.communicate()
        self.assertEqual(process.returncode, 3)
        self.assertEqual(self.read("said"), 3 * "train a b\n")

    def test_a_sigterm_is_passed_on_and_ends_it(self):
        command = self.script(
            "command",
            "#!/bin/bash\ntrap 'sleep 0.3; echo saved; exit 75' TERM\n"
            "echo begun\nwhile true; do sleep 0.05; done\n",
        )
        process = self.start(JEST_TF=command)
        self.assertEqual(process.stdout.readline(), "begun\n")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        self.assertEqual((said, process.returncode), ("saved\n", 75))


class QueueTest(DeployTestCase):
    def test_it_asks_again_until_the_run_is_finished(self):
        self.script("bin/gcloud", GCLOUD)
        states = ["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED"]
        self.script("states", "\n".join([*states, "NONE", "ACTIVE"]) + "\n")
        done = subprocess.run(
            [
                *("bash", str(DEPLOY / "queued_tpu.sh"), "jest"),
                *("gs://bucket/run", "--config", "my recipe.py"),
            ],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                "IMAGE": "image:tpu",
                "ZONE": "zone",
                "ACCELERATOR": "v5litepod-8",
                "VERSION": "v2-alpha-tpuv5-lite",
                "EVERY": "0",
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.assertIn("gs://bucket/run is finished", done.stdout)
        calls = self.read("calls").splitlines()
        words = [call.split() for call in calls]
        verbs = [each[3] for each in words if each[2] == "queued-resources"]
        changes = [verb for verb in verbs if verb != "describe"]
        self.assertEqual(changes, ["create", "delete"] * 2)
        create = next(line for line in calls if " create " in line)
        for flag in ("--spot", "--zone=zone", "--accelerator-type=v5litepod-8"):
            self.assertIn(flag, create)
        startup = os.path.join(self.folder, "startup")
        subprocess.run(["bash", "-n", startup], check=True)
        self.script("bin/docker", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
        said = subprocess.run(
            ["bash", startup],
            env={"PATH": f"{self.folder}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        self.assertEqual(
            said[-7:],
            [
                "--env=JAX_COMPILATION_CACHE_DIR=gs://bucket/jax-cache",
                *("image:tpu", "train", "--workdir", "gs://bucket/run"),
                *("--config", "my recipe.py"),
            ],
        )
