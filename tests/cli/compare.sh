# compare and sweep: figures, refusals, and a page that is well-formed and needs nothing from outside.
. tests/cli/check.inc
measure="--text $held_out --window 128 --max-windows 2 --needle-contexts 128 --needle-depths 50"

# page FILE PLOTS: it is well-formed, self-contained, and has so many drawings at least.
page() {
  command -v python3 >/dev/null || return 0
  python3 - "$1" "$2" <<'PYTHON' || fail "the page $1"
import re, sys
from html.parser import HTMLParser

VOID = {"meta", "br", "path", "circle", "rect", "use", "polygon", "feFlood", "feflood", "feComposite", "fecomposite"}

class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.bad, self.ids, self.drawings = [], [], set(), 0
    def handle_starttag(self, tag, attributes):
        self.drawings += tag == "svg"
        if tag not in VOID:
            self.open.append(tag)
        self.attributes(tag, attributes)
    def handle_startendtag(self, tag, attributes):
        self.attributes(tag, attributes)
    def attributes(self, tag, attributes):
        if tag in ("script", "link", "iframe", "img", "object", "embed"):
            self.bad.append(f"<{tag}>")
        for name, value in attributes:
            if name in ("src", "data", "action") or (name.endswith("href") and not value.startswith("#")):
                self.bad.append(f"{name}={value}")
            if name == "id":
                if value in self.ids:
                    self.bad.append(f"id {value} twice")
                self.ids.add(value)
    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.bad.append(f"</{tag}> where it is not open, line {self.getpos()[0]}")

text = open(sys.argv[1], encoding="utf-8").read()
page = Page()
page.feed(text)
page.close()
bad = page.bad + [f"<{tag}> is not closed" for tag in page.open]
bad += re.findall(r"url\((?!#)[^)]*\)|@import|https?://\S*", text)
if page.drawings < int(sys.argv[2]):
    bad.append(f"{page.drawings} drawings")
if bad:
    print("\n".join(bad[:5]))
sys.exit(bool(bad))
PYTHON
}

expect 0 "$kvfold" convert $books "$work/half" --method x-ecomla --cache 50% --json
expect 0 "$kvfold" convert $books "$work/pairs" --method mha2mla --cache 128 --calibration $books/README.md --json

# shellcheck disable=SC2086
answers "$kvfold" compare $books "$work/half" "$work/pairs" $measure --report "$work/page.html" --json
grep -q '"name": "half"' "$work/out" || fail "no model called half"
grep -q '"verdict": "Closest to the source: ' "$work/out" || fail "no verdict"
if command -v gnuplot >/dev/null; then page "$work/page.html" 9; else page "$work/page.html" 0; fi
# shellcheck disable=SC2086
expect 0 "$kvfold" compare $books "$work/half" $measure
grep -q '^half .* 2048 *50.0%' "$work/out" || fail "no row of half: $(cat "$work/out")"

# Without gnuplot the page has its tables and says why.
# shellcheck disable=SC2086
PATH=/nonexistent expect 0 "$kvfold" compare $books "$work/half" $measure --report "$work/plain.html"
says gnuplot
page "$work/plain.html" 0
grep -q 'Plots need gnuplot' "$work/plain.html" || fail "the page without plots does not say why"
grep -q '<svg' "$work/plain.html" && fail "a drawing without gnuplot"

# A sweep: one row fails, nothing stays, then something does.
# shellcheck disable=SC2086
answers "$kvfold" sweep $books --methods x-ecomla,mha2mla --cache 50%,1 --set mha2mla.rope_pairs=2 $measure \
  --report "$work/sweep.html" --json
grep -q '"name": "mha2mla 50%"' "$work/out" || fail "no mha2mla 50%"
grep -q '"failed": \[{"name": "x-ecomla 1"' "$work/out" || fail "the failed row is not told"
page "$work/sweep.html" 0
grep -q 'Conversions that failed' "$work/sweep.html" || fail "the page does not tell what failed"
[ -z "$(find "$work" -maxdepth 1 -name 'kvfold-sweep-*')" ] || fail "the sweep left its models"
# shellcheck disable=SC2086
answers "$kvfold" sweep $books --methods x-ecomla --cache 50% $measure --keep "$work/kept" --json
answers "$kvfold" info "$work/kept/x-ecomla-50%" --json
is cache_elements_per_token 1024
[ ! -e "$work/kept/.shared" ] || fail "the sweep left what its conversions shared"

# So does one that is interrupted.
# shellcheck disable=SC2086
"$kvfold" sweep $books --methods x-ecomla,mha2mla --cache 75%,50%,40%,30%,20%,10% --text $held_out --report "$work/no.html" \
  >/dev/null 2>"$work/err" &
sweep=$!
for _ in $(seq 300); do
  [ -z "$(find "$work" -maxdepth 1 -name 'kvfold-sweep-*')" ] || break
  sleep 0.1
done
kill -TERM $sweep
wait $sweep && fail "an interrupted sweep succeeded"
[ -z "$(find "$work" -maxdepth 1 -name 'kvfold-sweep-*')" ] || fail "an interrupted sweep left its models"

# Refusals leave no page.
expect 1 "$kvfold" compare $books "$work/pairs" --text $books/README.md --report "$work/no.html"
says calibrated
cp $books/README.md "$work/copy.md"
expect 1 "$kvfold" compare $books "$work/pairs" --text "$work/copy.md" --report "$work/no.html"
says calibrated
expect 1 "$kvfold" sweep $books --methods mha2mla --calibration "$work/copy.md" --text $books/README.md --report "$work/no.html"
says calibrated
expect 1 "$kvfold" compare $books "$work/nothing" --text $held_out --report "$work/no.html"
expect 1 "$kvfold" compare $books "$work/half" --text "$work/nothing" --report "$work/no.html"
says nothing
expect 1 "$kvfold" compare $books "$work/half" --text $held_out --report "$work/nowhere/no.html"
says nowhere
expect 1 "$kvfold" compare $books "$work/half" --text $held_out --window 1000000 --report "$work/no.html"
says tokens
expect 1 "$kvfold" sweep $books --methods x-ecomla --cache 1,2 --text $held_out --report "$work/no.html"
says "all conversions failed"
expect 2 "$kvfold" compare $books --text $held_out
expect 2 "$kvfold" compare $books "$work/half"
says --text
expect 2 "$kvfold" compare $books "$work/half" --text $held_out --needle-depths 50,101
says needle-depths
expect 2 "$kvfold" compare $books "$work/half" --text $held_out --needle-contexts 512,x
expect 2 "$kvfold" sweep $books --text $held_out --report "$work/no.html"
says --methods
expect 2 "$kvfold" sweep $books --methods magic --text $held_out --report "$work/no.html"
says magic
expect 2 "$kvfold" sweep $books --methods x-ecomla --set fold.refit=none --text $held_out --report "$work/no.html"
says fold.refit
expect 2 "$kvfold" sweep $books --methods x-ecomla --text $held_out
[ ! -e "$work/no.html" ] || fail "a refused comparison left a page"
finish
