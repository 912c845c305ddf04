#!/bin/sh
# Tries the layered-images paths of a running service, from the first upload to the last delete, with curl and nothing
# else: tools/try_layered_images.sh PHOTO [URL]
#
# Ends with "all is well" and status 0; or with the first thing that is not, and status 1. Whatever it made is deleted.

set -u

photo=${1:?usage: try_layered_images.sh PHOTO [URL]}
base=${2:-http://localhost:8000}
polls_max=${POLLS_MAX:-600}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

fail() {
    echo "failed: $*" >&2
    exit 1
}

# expect STATUS WHAT curl-arguments…: the answer is in $work/answer afterwards.
expect() {
    wanted=$1 what=$2
    shift 2
    status=$(curl -s -o "$work/answer" -w '%{http_code}' "$@") || status="no answer"
    [ "$status" = "$wanted" ] || fail "$what: $status instead of $wanted: $(head -c 300 "$work/answer" 2>/dev/null)"
}

# field NAME: of the JSON object in $work/answer, a text.
field() {
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$work/answer" | head -n 1
}

holds() {
    grep -q "$1" "$work/answer" || fail "$2: no $1 in $(head -c 300 "$work/answer")"
}

expect 200 "API info" "$base/"
holds '"docs"' "API info"
expect 200 "health" "$base/health"
holds '"status": *"healthy"' "health"
expect 200 "style presets" "$base/api/jobs/style-presets"
holds '"painterly": *\["' "style presets"
echo "ok  API info, health, style presets"

expect 200 "upload" -F "file=@$photo" "$base/api/jobs/upload"
filename=$(field filename)
[ -n "$filename" ] || fail "upload: no filename in its answer"
echo "ok  upload: $filename"

# create WHAT curl-arguments…: a job, followed to its end; its id is in $job.
create() {
    title=$1
    shift
    expect 201 "create $title" -F "filename=$filename" -F num_layers=3 -F max_size=256 "$@" "$base/api/jobs"
    job=$(field id)
    [ -n "$job" ] || fail "create $title: no id in its answer"
    polls=0
    until expect 200 "status of $title" "$base/api/jobs/$job" && [ "$(field status)" = completed ]; do
        case $(field status) in pending | processing) ;; *) fail "$title: $(head -c 600 "$work/answer")" ;; esac
        polls=$((polls + 1))
        [ "$polls" -lt "$polls_max" ] || fail "$title: still $(field status) after $polls looks"
        sleep 0.2
    done
    holds '"result_manifest": *{' "status of $title"
    expect 200 "list after $title" "$base/api/jobs?skip=0&limit=200"
    holds "$job" "list after $title"
    holds '"total": *[1-9]' "list after $title"
}

# fetch WHAT NAME: a file of $job.
fetch() {
    expect 200 "download $2 of $1" "$base/api/jobs/$job/download/$2"
    [ -s "$work/answer" ] || fail "download $2 of $1: it is empty"
    mv "$work/answer" "$work/$2"
    expect 200 "HEAD of $2 of $1" -I "$base/api/jobs/$job/download/$2"
}

for mode in photo-realistic painterly; do
    create "$mode" -F "mode=$mode" -F painterly_style=oil -F painterly_strength=0.5 -F painterly_seed=42
    eval "job_of_$(echo "$mode" | tr -d -)=\$job"
    for name in layer_manifest.json Layer_1_background.png Layer_2_midground.png Layer_3_foreground.png composite.png \
        depth_map.png; do
        fetch "$mode" "$name"
    done
    for name in Layer_1_background Layer_2_midground Layer_3_foreground composite depth_map; do
        [ "$(head -c 4 "$work/$name.png" | tail -c 3)" = PNG ] || fail "$mode: $name.png is no PNG"
    done
    grep -q "Layer_3_foreground.png" "$work/layer_manifest.json" || fail "$mode: the manifest does not name its layers"
    mv "$work/composite.png" "$work/composite-$mode.png"
    echo "ok  $mode: created, completed, listed, downloaded"
done

cmp -s "$work/composite-painterly.png" "$work/composite-photo-realistic.png" && fail "painterly: it painted nothing"
first=$job
create "painterly again" -F mode=painterly -F painterly_style=oil -F painterly_strength=0.5 -F painterly_seed=42
fetch "painterly again" composite.png
cmp -s "$work/composite.png" "$work/composite-painterly.png" || fail "painterly: the same seed gave other bytes"
echo "ok  painterly: the same seed gives the same bytes"

unknown=00000000-0000-7000-8000-000000000000
expect 400 "a mode that is none" -F "filename=$filename" -F mode=cubist "$base/api/jobs"
holds '"detail"' "a mode that is none"
expect 400 "a style that is none" -F "filename=$filename" -F mode=painterly -F painterly_style=cubist "$base/api/jobs"
expect 400 "too many layers" -F "filename=$filename" -F num_layers=6 "$base/api/jobs"
expect 404 "a file that is none" -F "filename=$unknown.jpg" "$base/api/jobs"
expect 404 "a job that is none" "$base/api/jobs/$unknown"
expect 404 "a result that is none" "$base/api/jobs/$job/download/nothing.png"
expect 404 "a path out of the job" "$base/api/jobs/$job/download/..%2F..%2Fetc%2Fpasswd"
echo "no picture" >"$work/no.txt"
expect 400 "an upload that is no picture" -F "file=@$work/no.txt" "$base/api/jobs/upload"
echo "ok  refusals: 400 and 404, with a detail"

for one in "$job" "$first" "$job_of_photorealistic"; do
    expect 204 "delete" -X DELETE "$base/api/jobs/$one"
    expect 404 "a deleted job" "$base/api/jobs/$one"
    expect 404 "a deleted job's file" "$base/api/jobs/$one/download/composite.png"
    expect 404 "deleting twice" -X DELETE "$base/api/jobs/$one"
done
echo "ok  delete"
echo "all is well"
