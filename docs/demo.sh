#!/bin/sh
# The whole loop on scikit-learn's digits: nothing to download, about three minutes on two CPU cores.
# `make demo` calls it; BIN is the folder of the iiae program, OUT takes everything it writes.
set -eu
iiae="${BIN:?}/iiae"
out="${OUT:?}"
x="$out/digits/test/x"
y="$out/digits/test/y"
step() { printf '\n$ iiae %s\n' "$*" >&2; "$iiae" "$@"; }

step prepare digits-cdcb -o "$out/digits-cdcb.h5" --pictures "$out/digits" --overwrite
step train --preset digits-cdcb --data "$out/digits-cdcb.h5" --run "$out/run" --overwrite
step evaluate --run "$out/run" --task all --lpips none
step encode "$y" --domain y --run "$out/run" -o "$out/gallery.h5" --overwrite
step retrieve "$x/00001.png" "$x/00002.png" "$x/00003.png" "$x/00004.png" --run "$out/run" \
    --index "$out/gallery.h5" --k 5 --montage "$out/retrieval.png" --overwrite
step translate "$x/00001.png" "$x/00002.png" "$x/00003.png" "$x/00004.png" --from x \
    --run "$out/run" --samples 5 --grid "$out/translation.png" --overwrite
step translate "$x/00001.png" "$x/00002.png" "$x/00003.png" --from x --run "$out/run" \
    --reference "$y/00010.png" --reference "$y/00011.png" --reference "$y/00012.png" \
    --grid "$out/guided.png" --overwrite

"$iiae" -q evaluate --run "$out/run" --json | "${BIN}/python" -c '
import json, sys
figures = json.load(sys.stdin)["retrieval"]
key = "recall@1"
def both(kind):
    return " / ".join(f"{figures[kind][way][key]:.3f}" for way in ("x_to_y", "y_to_x"))
print()
print("Recall@1 on the test split, x to y / y to x")
for kind in ("shared", "exclusive", "baseline"):
    print(f"  {kind:10} {both(kind)}")
'
echo
echo "Pictures to look at:"
for picture in retrieval translation guided; do echo "  $out/$picture.png"; done
ls "$out"/run/samples/*.png | tail -n 1 | sed 's/^/  /'
