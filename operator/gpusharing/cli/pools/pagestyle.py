"""How the page looks: in light and in dark, on paper, on a telephone. No font, image or script comes from elsewhere."""

_LIGHT = """
--ground:#ffffff;--raised:#f5f6f8;--text:#1c1e21;--faint:#5a6069;--line:#d5d9df;--accent:#0b57d0;
--done:#1a7f37;--done-ink:#ffffff;--moves:#0b57d0;--moves-ink:#ffffff;--waits:#e3e6ea;--waits-ink:#3d434b;
--blocked:#b35900;--blocked-ink:#ffffff;--failed:#b3261e;--failed-ink:#ffffff;--free:#f5f6f8;
--slice:#d8e5fd;--slice-ink:#0a2a66;
"""
_DARK = """
--ground:#14171a;--raised:#1d2126;--text:#e8eaed;--faint:#a5acb5;--line:#3a4048;--accent:#8ab4f8;
--done:#57c777;--done-ink:#06210e;--moves:#8ab4f8;--moves-ink:#06193a;--waits:#3a4048;--waits-ink:#e8eaed;
--blocked:#ffb04d;--blocked-ink:#2b1700;--failed:#ff8a80;--failed-ink:#3a0703;--free:#1d2126;
--slice:#2c4470;--slice-ink:#e4edff;
"""
CSS = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    """
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--ground);color:var(--text);
 font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.5rem 0 0}h2{font-size:1.2rem;margin:0}h3{font-size:1rem;margin:1.25rem 0 .25rem}
p{margin:.25rem 0;unicode-bidi:isolate}
.faint{color:var(--faint)}
section{border:1px solid var(--line);border-radius:10px;padding:1rem;margin:1rem 0}
.title{display:flex;flex-wrap:wrap;gap:.25rem .75rem;align-items:baseline}
.badge{border:1px solid var(--line);border-radius:99px;padding:0 .6rem;background:var(--raised)}
.alarm{border-left:4px solid var(--failed);padding-left:.6rem}
svg{display:block;max-width:100%}
svg text{font:600 12px ui-monospace,monospace;text-anchor:middle}
.bar{height:auto;margin:.5rem 0}
.track,.card{width:100%;height:22px}
.card{max-width:32rem;border:1px solid var(--line)}
.done rect{fill:var(--done)}.done text{fill:var(--done-ink)}
.moves rect{fill:var(--moves);stroke:var(--ground)}.moves text{fill:var(--moves-ink)}
.waits rect{fill:var(--waits)}.waits text{fill:var(--waits-ink)}
.blocked rect{fill:var(--blocked)}.blocked text{fill:var(--blocked-ink)}
.failed rect{fill:var(--failed)}.failed text{fill:var(--failed-ink)}
.free{fill:var(--free)}
.slice rect,.whole rect{fill:var(--slice);stroke:var(--ground);stroke-width:2}
.slice text,.whole text{fill:var(--slice-ink)}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;margin:.25rem 0;padding:0}
.scroll{overflow-x:auto;margin:.5rem 0}
.scroll:focus-visible{outline:2px solid var(--accent)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .75rem .3rem 0;border-top:1px solid var(--line);
 unicode-bidi:isolate}
thead th{color:var(--faint);font-weight:500;border-top:0;white-space:nowrap}
tbody th{font-weight:600}
th,td{overflow-wrap:normal}
tbody th,.nodes td:nth-child(2){white-space:nowrap}
.nodes td.long{min-width:16rem;overflow-wrap:anywhere}
.pictures td:last-child{width:70%;min-width:12rem}
@media print{section{break-inside:avoid}}
"""
)
