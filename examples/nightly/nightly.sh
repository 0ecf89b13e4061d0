#!/bin/sh
# One night: match everybody, verify, report, publish, clean up. See docs/nightly.md.
#
# Settings come from the environment; nightly.env lists them. Exit codes:
#   0   published
#   2   wrong usage or settings           3   invalid data
#   4   partly done: not done by FINISH_BY, the next night goes on; or published, but some
#       queries had errors
#   5   something does not answer         6   not fit to be published; the old run still is
#   75  try again later: another night is at work, or what failed may pass
set -u

MATCHWRIGHT=${MATCHWRIGHT:-matchwright}
STORE=${STORE:?the folder of the store}
OUTPUT=${OUTPUT:-$STORE/runs}
FOR=${FOR:-both}
K=${K:-100}
POLICY=${POLICY:-}
FINISH_BY=${FINISH_BY:-06:00}
COMPACT=${COMPACT:-yes}
INCREMENTAL=${INCREMENTAL:-yes}
SLACK=${SLACK:-50}
RESUMES=${RESUMES:-3}
RETRY_S=${RETRY_S:-60}
KEEP=${KEEP:-7}
KEEP_DAYS=${KEEP_DAYS:-14}
STATE_DIR=${STATE_DIR:-$STORE}
METRICS_DIR=${METRICS_DIR:-}
MODELS=${MODELS:-}
TRITON=${TRITON:-}
EXTRA=${EXTRA:-}

UNFINISHED=$STATE_DIR/nightly.unfinished
ANSWER=$STATE_DIR/nightly.answer
LEASE=nightly
stopped=
child=
errors=0

say() { printf 'nightly: %s\n' "$*" >&2; }

# ── Time and signals ──────────────────────────────────────────────────────────────────────────

# The next time that the clock shows FINISH_BY, fixed once: a resume must not get another day.
deadline() {
    at=$(date -d "$FINISH_BY" +%s) || exit 2
    [ "$at" -gt "$(date +%s)" ] || at=$(date -d "tomorrow $FINISH_BY" +%s) || exit 2
    printf '%s' "$at"
}

seconds_left() { printf '%s' "$((END - $(date +%s)))"; }

# A signal to this shell goes on to the command at work, which then ends in good order.
# shellcheck disable=SC2329  # a trap calls it
forward() {
    stopped=yes
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}

# Runs a command; its answer goes to $ANSWER, progress and errors to stderr. Sets $code.
run() {
    "$@" >"$ANSWER" 9>&- &
    child=$!
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
        wait "$child"
        code=$?
    done
    child=
    return 0
}

nap() {
    sleep "$1" 9>&- &
    child=$!
    wait "$child"
    child=
}

# The first text value of a name in the answer.
answered() { sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p' "$ANSWER" | head -n 1; }

# ── Steps ─────────────────────────────────────────────────────────────────────────────────────

# Before the epoch is kept, which would hold back what a merge replaces. Nothing depends on it.
compact() {
    [ "$COMPACT" = yes ] || return 0
    run "$MATCHWRIGHT" store compact --store "$STORE" -f json
    [ "$code" -eq 0 ] || say "the store was not compacted (exit code $code); the run can do without"
}

start() {
    set -- --store "$STORE" --output "$OUTPUT" --for "$FOR" -k "$K" --slack "$SLACK"
    [ -z "$POLICY" ] || set -- "$@" --policy "$POLICY"
    [ "$INCREMENTAL" != yes ] || set -- "$@" --changed-since published
    [ -z "$MODELS" ] || set -- "$@" --models "$MODELS"
    [ -z "$TRITON" ] || set -- "$@" --triton "$TRITON"
    run "$MATCHWRIGHT" run plan "$@" -f json
    [ "$code" -eq 0 ] || return 0
    url=$(answered url)
    say "run $url"
    printf '%s\n' "$url" >"$UNFINISHED"
    # shellcheck disable=SC2086  # EXTRA is a list of words
    run "$MATCHWRIGHT" run start "$@" $EXTRA --finish-by "$END_ISO" -f json
}

resume() {
    say "going on with $url"
    set -- --store "$STORE"
    [ -z "$MODELS" ] || set -- "$@" --models "$MODELS"
    [ -z "$TRITON" ] || set -- "$@" --triton "$TRITON"
    # shellcheck disable=SC2086
    run "$MATCHWRIGHT" run resume "$url" "$@" $EXTRA --finish-by "$END_ISO" -f json
}

# Whether what ended with $code may pass: a target that does not answer, try again, killed.
may_pass() { [ "$code" -eq 5 ] || [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }

# From the run that a night left unfinished, or a new one, to a run that is complete; sets $url.
match() {
    url=
    if [ -s "$UNFINISHED" ]; then
        url=$(cat "$UNFINISHED")
        resume
        if [ "$code" -ne 0 ] && [ "$code" -ne 4 ] && [ -z "$stopped" ] &&
            [ "$(seconds_left)" -gt 0 ]; then
            say "cannot go on with it (exit code $code): starting anew"
            rm -f "$UNFINISHED"
            url=
        fi
    fi
    [ -n "$url" ] || start
    tries=0
    while may_pass && [ -z "$stopped" ] && [ "$tries" -lt "$RESUMES" ] && [ -n "$url" ] &&
        [ "$(seconds_left)" -gt "$RETRY_S" ]; do
        tries=$((tries + 1))
        say "exit code $code; try $tries of $RESUMES in $RETRY_S s"
        nap "$RETRY_S"
        [ -n "$stopped" ] || resume
    done
}

metrics() {
    if [ -n "$METRICS_DIR" ] && [ -f "$url/metrics.prom" ]; then
        new=$METRICS_DIR/.matchwright.prom.new
        { cp "$url/metrics.prom" "$new" && mv "$new" "$METRICS_DIR/matchwright.prom"; } ||
            say "cannot write metrics to $METRICS_DIR"
    fi
}

night() {
    match
    if [ "$code" -eq 4 ] && [ -z "$stopped" ]; then
        say "some queries had errors; what is published is decided by the gates"
        errors=4
        code=0
    fi
    if [ "$code" -ne 0 ]; then
        if may_pass && { [ -n "$stopped" ] || [ "$(seconds_left)" -le "$RETRY_S" ]; }; then
            say "not done in time; the next night goes on with $url"
            code=4
        fi
        return 0
    fi
    rm -f "$UNFINISHED"
    metrics
    run "$MATCHWRIGHT" run verify "$url" --store "$STORE" ${MODELS:+--models "$MODELS"} -f json
    [ "$code" -eq 0 ] || return 0
    run "$MATCHWRIGHT" run report "$url" --store "$STORE" ${MODELS:+--models "$MODELS"}
    [ "$code" -eq 0 ] || say "no report (exit code $code); the run is fine"
    run "$MATCHWRIGHT" run publish "$url" --store "$STORE" ${MODELS:+--models "$MODELS"} -f json
    [ "$code" -eq 0 ] || return 0
    say "published $url"
    set -- --output "$OUTPUT" --keep "$KEEP" --older-than "$KEEP_DAYS"
    run "$MATCHWRIGHT" run gc "$@" --yes -f json
    if [ "$code" -ne 0 ]; then
        say "old runs were not removed (exit code $code); the new one is published"
        code=0
    fi
}

# ── The night ─────────────────────────────────────────────────────────────────────────────────

[ -d "$STORE" ] || {
    say "$STORE: there is no store"
    exit 2
}
exec 9>"$STATE_DIR/nightly.lock" || exit 2
flock -n 9 || {
    say "another night is at work in $STORE"
    exit 75
}
END=$(deadline) || exit 2
END_ISO=$(date -d "@$END" +%Y-%m-%dT%H:%M:%S%z | sed 's/\(..\)$/:\1/')
trap forward TERM INT HUP
run "$MATCHWRIGHT" store release "$LEASE" --store "$STORE" -f json 2>/dev/null
compact
[ -z "$stopped" ] || {
    say "stopped before a run was begun"
    rm -f "$ANSWER"
    exit 75
}
# Nobody lets the epoch go before its run is verified.
run "$MATCHWRIGHT" store keep "$LEASE" --store "$STORE" --for 1d -f json
[ "$code" -eq 0 ] || say "the epoch is not kept (exit code $code): verification may see less"
was_unfinished=
[ ! -s "$UNFINISHED" ] || was_unfinished=yes
night
if [ "$code" -eq 0 ] && [ -n "$was_unfinished" ] && [ -z "$stopped" ] &&
    [ "$(seconds_left)" -gt "$RETRY_S" ]; then
    say "what an earlier night left is published; now tonight's"
    night
fi
result=$code
[ "$result" -ne 0 ] || result=$errors
run "$MATCHWRIGHT" store release "$LEASE" --store "$STORE" -f json
rm -f "$ANSWER"
exit "$result"
