#!/usr/bin/env bash
# Redis and RabbitMQ for the tests. Without an argument: the integration tests against fresh servers.
#
#   scripts/test-env.sh up            start servers and leave them running
#   scripts/test-env.sh env           print what to export: eval "$(scripts/test-env.sh env)"
#   scripts/test-env.sh down          end exactly what `up` started
#   scripts/test-env.sh run -- CMD    fresh servers around a command
#
# It takes REDIS_URL and RABBITMQ_URL where they are given; else docker compose, where an engine answers; else programs
# of this machine on free ports, with data folders of their own. How, is in tests/fixtures/environment.py.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Inside a virtual environment that has what the tests need (make's recipes), use that; else make one.
python="${TEST_ENV_PYTHON:-}"
if [[ -z "$python" ]]; then
    make --silent setup >&2
    python="$(make --silent print-python)"
fi
# exec: a signal to this script is a signal to the program, which cleans up.
exec "$python" -m tests.fixtures.environment "$@"
