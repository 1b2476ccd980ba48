//! Lanes of the timeline: attempts that did not run at the same time share one; a lane is a slot of an instance.

use super::{Span, SpanKind};

/// The width of a mark, in units of the axis.
pub(super) const MARK_WIDTH: u32 = 3;
/// The width from which an attempt has marks.
const MARKED_FROM: u32 = 4 * MARK_WIDTH;

/// A lane: its instance, and its pieces in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) instance: u32,
    /// Pieces: start and end in units of the axis, and the kind.
    pub(super) pieces: Vec<(u32, u32, SpanKind)>,
    /// Spot notices.
    pub(super) notices: Vec<u32>,
    /// The newest checkpoint of each attempt.
    pub(super) checkpoints: Vec<u32>,
}

/// Lays attempts out in lanes on an axis of `width` units. Pieces of one kind that are less than `gap` apart are one.
pub(super) fn lay_out(spans: &[Span], range: (u64, u64), width: u32, gap: u32) -> Vec<Lane> {
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_by_key(|span| (span.instance, span.start_s, span.end_s));
    let length = u128::from((range.1 - range.0).max(1));
    let place = |second: u64| {
        let unit = u128::from(second.clamp(range.0, range.1) - range.0) * u128::from(width) / length;
        u32::try_from(unit).unwrap_or(width)
    };
    let (mut lanes, mut ends): (Vec<Lane>, Vec<u64>) = (Vec::new(), Vec::new());
    let mut first = 0;
    for span in spans {
        if lanes.last().is_some_and(|lane: &Lane| lane.instance != span.instance)
            && lanes[first].instance != span.instance
        {
            first = lanes.len();
        }
        let free = (first..lanes.len()).find(|&lane| ends[lane] <= span.start_s);
        let lane = free.unwrap_or_else(|| {
            lanes.push(Lane { instance: span.instance, ..Lane::default() });
            ends.push(0);
            lanes.len() - 1
        });
        ends[lane] = span.end_s.max(span.start_s + 1);
        // What went wrong must be seen, however short it was.
        let least = if matches!(span.kind, SpanKind::Failed | SpanKind::Interrupted) { MARK_WIDTH } else { 1 };
        let from = place(span.start_s).min(width.saturating_sub(least));
        let to = place(span.end_s).max(from + least);
        match lanes[lane].pieces.last_mut() {
            Some((_, end, kind)) if *kind == span.kind && from <= end.saturating_add(gap) => *end = to.max(*end),
            _ => lanes[lane].pieces.push((from, to, span.kind)),
        }
        // Marks of short attempts would hide the lane.
        if to - from >= MARKED_FROM {
            lanes[lane].notices.extend(span.notice.map(|second| place(second.get())));
            lanes[lane].checkpoints.extend(span.checkpoint.map(|second| place(second.get())));
        }
    }
    // By the time of their first attempt: instances that were launched later are further down.
    lanes.sort_by_key(|lane| (lane.pieces.first().map(|piece| piece.0), lane.instance));
    lanes
}

/// Returns how many attempts ran at a time: the steps of a curve, as (second, number), at most `most` of them. Between
/// two steps of the result, the highest number is kept.
pub(super) fn concurrency(spans: &[Span], most: usize) -> Vec<(u64, u64)> {
    let mut changes: Vec<(u64, i64)> = Vec::with_capacity(2 * spans.len());
    for span in spans {
        changes.push((span.start_s, 1));
        changes.push((span.end_s.max(span.start_s + 1), -1));
    }
    changes.sort_unstable();
    let (mut steps, mut now): (Vec<(u64, u64)>, i64) = (Vec::new(), 0);
    for (second, change) in changes {
        now += change;
        let number = u64::try_from(now).unwrap_or(0);
        match steps.last_mut() {
            Some((at, last)) if *at == second => *last = number,
            _ => steps.push((second, number)),
        }
    }
    let share = steps.len().div_ceil(most.max(1)).max(1);
    let thinned = steps.chunks(share).map(|chunk| (chunk[0].0, chunk.iter().map(|step| step.1).max().unwrap_or(0)));
    let mut thinned: Vec<(u64, u64)> = thinned.collect();
    if let (Some(last), Some(end)) = (thinned.last_mut(), steps.last())
        && last.0 != end.0
    {
        thinned.push(*end);
    } else if let (Some(last), Some(end)) = (thinned.last_mut(), steps.last()) {
        *last = *end;
    }
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Second;

    fn span(instance: u32, start_s: u64, end_s: u64, kind: SpanKind) -> Span {
        Span { instance, start_s, end_s, kind, notice: None, checkpoint: None }
    }

    #[test]
    fn attempts_at_the_same_time_have_lanes_of_their_own() {
        let spans = [
            span(0, 100, 150, SpanKind::Done),
            span(0, 100, 120, SpanKind::Failed),
            span(0, 120, 200, SpanKind::Done),
            span(1, 110, 190, SpanKind::Done),
        ];
        let lanes = lay_out(&spans, (100, 200), 100, 0);
        assert_eq!(lanes.len(), 3);
        assert_eq!(lanes[0].pieces, [(0, 20, SpanKind::Failed), (20, 100, SpanKind::Done)]);
        assert_eq!(lanes[1].pieces, [(0, 50, SpanKind::Done)]);
        assert_eq!((lanes[2].instance, lanes[2].pieces[0]), (1, (10, 90, SpanKind::Done)));
    }

    #[test]
    fn marks_are_in_the_lane_of_their_attempt() {
        let mut spans = [span(0, 100, 150, SpanKind::Done), span(0, 110, 200, SpanKind::Interrupted)];
        spans[1].notice = Second::new(180);
        spans[1].checkpoint = Second::new(190);
        let lanes = lay_out(&spans, (100, 200), 100, 0);
        assert_eq!((lanes[0].notices.len(), lanes[0].checkpoints.len()), (0, 0));
        assert_eq!((&lanes[1].notices[..], &lanes[1].checkpoints[..]), (&[80][..], &[90][..]));

        // Marks do not hide short attempts.
        let marked = |n: u64| Span { checkpoint: Second::new(n), ..span(0, n, n + 1, SpanKind::Done) };
        let spans: Vec<Span> = (1..10_000).map(marked).collect();
        assert!(lay_out(&spans, (0, 10_000), 1000, 1)[0].checkpoints.is_empty());
    }

    #[test]
    fn a_failure_is_seen_however_short_it_was() {
        let spans = [span(0, 0, 5_000, SpanKind::Done), span(0, 5_000, 5_001, SpanKind::Failed)];
        assert_eq!(lay_out(&spans, (0, 10_000), 1000, 0)[0].pieces[1], (500, 503, SpanKind::Failed));
        let last = [span(0, 9_999, 10_000, SpanKind::Interrupted)];
        assert_eq!(lay_out(&last, (0, 10_000), 1000, 0)[0].pieces, [(997, 1000, SpanKind::Interrupted)]);
    }

    #[test]
    fn many_short_attempts_become_few_pieces() {
        let spans: Vec<Span> = (0..10_000).map(|n| span(0, n, n + 1, SpanKind::Done)).collect();
        let lanes = lay_out(&spans, (0, 10_000), 1000, 1);
        assert_eq!(lanes[0].pieces, [(0, 1000, SpanKind::Done)]);
    }

    #[test]
    fn the_curve_ends_at_zero_and_keeps_its_peak() {
        let spans: Vec<Span> = (0..1000).map(|n| span(0, n, n + 10, SpanKind::Done)).collect();
        for most in [5, 50, 5000] {
            let curve = concurrency(&spans, most);
            assert!(curve.len() <= most + 1, "{}", curve.len());
            assert_eq!(curve.iter().map(|step| step.1).max(), Some(10));
            assert_eq!(curve.last().unwrap(), &(1009, 0));
        }
        assert!(concurrency(&[], 10).is_empty());
    }
}
