#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole circle on real images, in minutes: a folder with titles becomes a model, the model a
# search, what is clicked in the search becomes triplets, and these a better model.
#
# usage: bash launch/search_demo.sh [--dry-run] [--quick] [FOLDER, default search-demo]
#
# --quick is a smoke test, whose numbers mean nothing. What is there already is not made again: the
# same command goes on where it was stopped. The page stays open to be tried with
#   cir-jax serve FOLDER/index
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

quick=0 folder=search-demo
for flag in "$@"; do
  case "$flag" in
    --dry-run) DRY_RUN=1 ;;
    --quick) quick=1 ;;
    --help | -h) usage; exit 0 ;;
    -*) fail "unknown flag $flag; see --help" ;;
    *) folder=$flag ;;
  esac
done
prepare_environment search-demo
cir_jax="$VENV/bin/cir-jax" shop="$ROOT/tools/icon_shop.py"
icons=200 each=6 questions=1000 epochs=8
[ "$quick" = 0 ] || { icons=24 each=4 questions=20 epochs=1; }
data="$folder/cir" index="$folder/index"

step() {
  echo
  echo "== $*"
}

step "pictures of a shop, and a table of their titles"
[ -e "$folder/shop/titles.csv" ] ||
  execute "$VENV/bin/python" "$shop" make "$folder/shop" --icons "$icons" --each "$each"
step "a data set: a fifth of the products is held out"
[ -e "$data/gallery.txt" ] ||
  execute "$cir_jax" prepare "$folder/shop" --titles "$folder/shop/titles.csv" --group product \
    --out "$data"
execute "$VENV/bin/python" "$shop" questions "$folder/shop" "$data"
step "triplets from the titles, and a first model"
execute "$cir_jax" positives --config positives:titles --set "data.root=$data" \
  --set "workdir=$data/positives"
own=(--set "data.root=$data" --set "epochs=$epochs" --set eval.every=2)
execute "$cir_jax" train --config clip_sum:tiny,positives "${own[@]}" \
  --set "workdir=$folder/runs/titles"

step "an index of all pictures, and a server"
execute "$cir_jax" index "$folder/shop" --titles "$folder/shop/titles.csv" \
  --model "$folder/runs/titles" --out "$index"
port="${PORT:-8421}" url="http://127.0.0.1:${PORT:-8421}" server=""
if [ "$DRY_RUN" = 1 ]; then
  execute "$cir_jax" serve "$index" --port "$port" --held-out "$data"
else
  "$cir_jax" serve "$index" --port "$port" --held-out "$data" >"$folder/serve.log" 2>&1 &
  server=$!
  trap 'kill "$server" 2>/dev/null || true' EXIT
  for _ in $(seq 120); do
    "$VENV/bin/python" -c "import urllib.request; urllib.request.urlopen('$url/healthz')" \
      2>/dev/null && break
    kill -0 "$server" 2>/dev/null || fail "the server ended; see $folder/serve.log"
    sleep 1
  done
fi
step "customers ask, and click (played by a program that knows the table)"
execute "$VENV/bin/python" "$shop" ask "$folder/shop" "$data" "$url" --questions "$questions"
[ -z "$server" ] || { kill "$server"; wait "$server" || true; trap - EXIT; }

step "the same training with the clicks as well, and both on the questions about held-out products"
execute "$cir_jax" train --config clip_sum:tiny "${own[@]}" --set \
  "data.generated=$(realpath -m "$data")/positives/triplets.jsonl,$(realpath -m "$index")/clicks/triplets.jsonl" \
  --set "workdir=$folder/runs/clicks"
for run in titles clicks; do
  step "trained on $run"
  execute "$cir_jax" evaluate --workdir "$folder/runs/$run"
done
