// The metric's rule, in the browser: the same decisions as keypoint_detection/metrics/error_kinds.py, which a test
// verifies.
// An image holds per channel `truths` [[x, y], ...] and `detections` [[x, y, score], ...] in descending score;
// null stands for a channel that is not labelled in this image.

const TRUE = 0, DUPLICATE = 1, IMPRECISE = 2, WRONG_CHANNEL = 3, BACKGROUND = 4;
const KIND_NAMES = ["true detection", "duplicate", "imprecise", "wrong channel", "background"];
const IMPRECISE_FACTOR = 2;

function distanceBetween(a, b) {
  const dx = b[0] - a[0], dy = b[1] - a[1];
  return Math.sqrt(dx * dx + dy * dy);
}

// The nearest truth within the radius that is free and allowed: {truth, distance}, or null. Ties go to the first.
function nearestFree(detection, truths, radius, allowed = () => true) {
  let best = null;
  for (const truth of truths) {
    if (truth.taken || !allowed(truth)) continue;
    const distance = distanceBetween(detection.xy, truth.xy);
    if (distance <= radius && (best === null || distance < best.distance)) best = { truth, distance };
  }
  return best;
}

const anyWithin = (detection, truths, radius) => truths.some((t) => distanceBetween(detection.xy, t.xy) <= radius);

// Names every detection at or above its channel's score threshold, and marks the truths that are found or claimed.
// Returns one {truths, detections} per channel, null where the channel is not labelled.
function classify(image, distance, thresholds) {
  const channels = image.truths.map((points, channel) => points === null ? null : {
    truths: points.map((xy) => ({ xy, channel, taken: false, found: false })),
    detections: image.detections[channel].filter((d) => d[2] >= thresholds[channel])
      .map((d) => ({ xy: d, score: d[2], channel, kind: null, truth: null, distance: NaN })),
  });
  const labelled = channels.filter((channel) => channel !== null);
  const radius = IMPRECISE_FACTOR * distance;
  for (const { truths, detections } of labelled) {
    claimIn(truths, detections, distance, TRUE);
    for (const d of detections) if (d.kind === null && anyWithin(d, truths, distance)) d.kind = DUPLICATE;
    claimIn(truths, detections, radius, IMPRECISE);
    for (const d of detections) if (d.kind === null && anyWithin(d, truths, radius)) d.kind = DUPLICATE;
  }
  const allTruths = labelled.flatMap((channel) => channel.truths);
  const rest = labelled.flatMap((channel) => channel.detections).filter((d) => d.kind === null);
  rest.sort((a, b) => b.score - a.score);
  for (const d of rest) {
    const hit = nearestFree(d, allTruths, distance, (t) => t.channel !== d.channel);
    if (hit) hit.truth.taken = true;
    d.truth = hit && hit.truth;
    d.kind = anyWithin(d, allTruths, distance) ? WRONG_CHANNEL : BACKGROUND;
  }
  return channels;
}

function claimIn(truths, detections, radius, kind) {
  for (const d of detections) {
    if (d.kind !== null) continue;
    const hit = nearestFree(d, truths, radius);
    if (hit === null) continue;
    Object.assign(d, { kind, truth: hit.truth, distance: hit.distance });
    hit.truth.taken = true;
    hit.truth.found = kind === TRUE;
  }
}

// Counts per channel: true and false positives, false negatives, errors by kind, and the summed distance of the true.
function countChannels(channels) {
  return channels.map((channel) => {
    const count = { tp: 0, fp: 0, fn: 0, kinds: [0, 0, 0, 0, 0], missed: 0, distance: 0 };
    if (channel === null) return count;
    for (const d of channel.detections) {
      count.kinds[d.kind] += 1;
      if (d.kind === TRUE) count.distance += d.distance;
    }
    count.tp = count.kinds[TRUE];
    count.fp = channel.detections.length - count.tp;
    count.fn = channel.truths.length - count.tp;
    count.missed = channel.truths.filter((t) => !t.taken).length;
    return count;
  });
}

function addCounts(counts) {
  const sum = { tp: 0, fp: 0, fn: 0, kinds: [0, 0, 0, 0, 0], missed: 0, distance: 0 };
  for (const c of counts) {
    for (const key of ["tp", "fp", "fn", "missed", "distance"]) sum[key] += c[key];
    c.kinds.forEach((n, i) => { sum.kinds[i] += n; });
  }
  return sum;
}

const ratio = (part, whole) => whole > 0 ? part / whole : NaN;
const precisionOf = (c) => ratio(c.tp, c.tp + c.fp);
const recallOf = (c) => ratio(c.tp, c.tp + c.fn);
const f1Of = (c) => ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn);
