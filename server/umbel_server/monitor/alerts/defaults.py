"""The rules that ``umbel alert rules --init`` writes, each with why it is there."""

from __future__ import annotations

DEFAULT_TOML = """\
# What umbel serve alerts looks at, and whom it tells. Edited rules count from the next look; a mistake is in the log,
# and  umbel alert rules  names it. Every figure and field: docs/reference/alert-cli.md.

# --- Whom to tell. Without a channel alerts are in  umbel alert list  only. Take away the # of what you use.

# [[channel]]
# name = "ops"
# kind = "webhook"
# url = "https://hooks.example.org/umbel"   # or url_file, url_env, url_command, where the URL is a secret
# secret_file = "keys/ops.secret"           # bodies are signed with it: header Umbel-Signature

# [[channel]]
# name = "mail"
# kind = "email"
# host = "mail.example.org"
# tls = "starttls"                          # or "implicit"; never in the clear
# from = "umbel@example.org"
# to = ["ops@example.org"]
# user = "umbel"
# password_file = "keys/mail.password"
# severities = ["critical"]

# [[channel]]
# name = "alertmanager"
# kind = "alertmanager"
# url = "http://127.0.0.1:9093"             # https, or http on this machine

# --- Rollouts: what their own gates do not look at is taken back here.

[[rule]]
name = "candidate-slower"
what = "candidate_latency"
threshold = 0.10            # a tenth, surely
severity = "critical"
actions = ["roll_back"]

[[rule]]
name = "candidate-failing"
what = "candidate_errors"
threshold = 0.02
severity = "critical"
actions = ["roll_back"]

[[rule]]
name = "candidate-less-sure"
what = "candidate_estimated_accuracy"
threshold = 0.02            # two points of expected accuracy, surely
severity = "critical"
actions = ["roll_back"]

[[rule]]
name = "candidate-less-right"
what = "candidate_realized_accuracy"
threshold = 0.02            # by labels that came
severity = "critical"
actions = ["roll_back"]

[[rule]]
name = "candidate-disagrees"
what = "candidate_agreement"
threshold = 0.05            # in a shadow step
severity = "critical"
actions = ["roll_back"]

[[rule]]
name = "crash-loops"
what = "crash_loops"
threshold = 5               # devices that gave a version up
severity = "critical"
actions = ["pause_rollout"]

# --- Models in use.

[[rule]]
name = "errors"
what = "error_rate"
threshold = 0.05
for = "10m"
severity = "critical"

[[rule]]
name = "slow"
what = "latency_ms"
percentile = 99
threshold = 1000
for = "30m"

[[rule]]
name = "drift"
what = "drift"
threshold = 0.05            # share of values that moved; that they did is sure at level
level = 0.05
window = "7d"
# actions = ["propose_run"]  # somebody accepts it with  umbel alert accept;  "start_run" starts it by itself
# plan = "retrain.toml"

[[rule]]
name = "less-sure"
what = "estimated_accuracy"
threshold = 0.05
window = "7d"

[[rule]]
name = "less-right"
what = "realized_accuracy"
threshold = 0.05
window = "7d"

# [[rule]]
# name = "fairness"
# what = "fairness_gap"
# label = "approved"          # the label that is a benefit, or a burden
# threshold = 0.05
# window = "7d"

# [[rule]]
# name = "enough-labels"
# what = "new_labels"
# model = "digits"
# threshold = 5000
# actions = ["propose_run"]
# plan = "retrain.toml"

[[rule]]
name = "reviews-wait"
what = "review_queue"
threshold = 200
window = "7d"
for = "1h"
severity = "info"

# --- The fleet.

[[rule]]
name = "devices-offline"
what = "devices_offline"
threshold = 0.10
for = "1h"

[[rule]]
name = "devices-stale"
what = "devices_stale"
threshold = 0.50
for = "30m"
severity = "critical"

[[rule]]
name = "device-certificates"
what = "device_certificates"
threshold = 0.01

[[rule]]
name = "opener-lag"
what = "opener_lag"
threshold = 600
for = "5m"
severity = "critical"

[[rule]]
name = "reports-refused"
what = "rejected_batches"
threshold = 0.01
window = "1h"

[[rule]]
name = "ends-within-two-weeks"
what = "expiry"
threshold = 14              # days, of what people renew: certificates, root and targets metadata

[[rule]]
name = "ends-today"
what = "expiry"
threshold = 0.1             # days; below 1 also of what the gateway renews by itself: snapshot and timestamp
severity = "critical"

[[rule]]
name = "budget-nearly-spent"
what = "privacy_budget"
threshold = 0.80
severity = "info"
"""
