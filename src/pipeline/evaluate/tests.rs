#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::{ArrayD, IxDyn};

use super::super::samples::Group;
use super::{score_sample, sum_up, top};

#[test]
fn top_breaks_ties_by_index_and_puts_nan_last() {
    assert_eq!(top(&[1.0, 3.0, 3.0, f32::NAN, -1.0], 5), [1, 2, 0, 4, 3]);
    assert_eq!(top(&[0.0, -0.0], 1), [0]);
    assert!(top(&[], 3).is_empty());
}

fn logits(rows: &[&[f32]]) -> ArrayD<f32> {
    let flat: Vec<f32> = rows.iter().flat_map(|r| r.iter().copied()).collect();
    ArrayD::from_shape_vec(IxDyn(&[rows.len(), rows[0].len()]), flat).unwrap()
}

fn group(labels: &[Option<usize>]) -> Group {
    Group { inputs: Vec::new(), names: labels.iter().map(|_| "x".to_owned()).collect(), labels: labels.to_vec() }
}

#[test]
fn figures_are_those_of_the_definition() {
    let x = logits(&[&[1.0, 2.0], &[4.0, 0.0]]);
    let r = logits(&[&[1.0, 3.0], &[2.0, 3.0]]);
    let g = group(&[Some(1), None]);
    let scores: Vec<_> = (0..2).map(|i| score_sample(&g, i, &[&x, &r]).unwrap()).collect();
    let e = sum_up(&scores, true, 0.0);
    // Signal 1 + 9 + 4 + 9, noise 0 + 1 + 4 + 9.
    assert!((e.sqnr_db.unwrap() - 10.0 * (23.0f64 / 14.0).log10()).abs() < 1e-12);
    assert_eq!((e.samples, e.labelled, e.top1, e.agreement), (2, 1, Some(1.0), Some(0.5)));
    assert_eq!((e.top5, e.max_abs_difference, e.reference_top1), (None, Some(3.0), Some(1.0)));
}

#[test]
fn outputs_that_are_no_numbers_are_an_error_on_either_side() {
    let (good, bad) = (logits(&[&[1.0, 2.0, 3.0]]), logits(&[&[f32::NAN, 2.0, f32::INFINITY]]));
    let score = |x, r| score_sample(&group(&[None]), 0, &[x, r]).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(score(&good, &good), Ok(()));
    assert!(score(&bad, &good).unwrap_err().starts_with("the model's first output has 2 values of 3"));
    assert!(score(&good, &bad).unwrap_err().starts_with("the reference's first output has 2 values of 3"));
}

#[test]
fn nothing_is_claimed_of_what_was_not_measured() {
    let x = logits(&[&[1.0, 2.0]]);
    let scores = [score_sample(&group(&[None]), 0, &[&x]).unwrap()];
    let e = sum_up(&scores, false, 0.0);
    assert_eq!((e.top1, e.top5, e.agreement, e.sqnr_db, e.max_abs_difference), (None, None, None, None, None));
    let same = [score_sample(&group(&[None]), 0, &[&x, &x]).unwrap()];
    let e = sum_up(&same, true, 0.0);
    assert_eq!((e.sqnr_db, e.max_abs_difference, e.agreement), (None, Some(0.0), Some(1.0)));
}

#[test]
fn a_label_beyond_the_classes_and_a_foreign_reference_are_refused() {
    let (x, r) = (logits(&[&[1.0, 2.0]]), logits(&[&[1.0, 2.0, 3.0]]));
    let e = score_sample(&group(&[Some(2)]), 0, &[&x]).unwrap_err().to_string();
    assert!(e.contains("label 2") && e.contains("2 classes"), "{e}");
    let e = score_sample(&group(&[None]), 0, &[&x, &r]).unwrap_err().to_string();
    assert!(e.contains("2 values") && e.contains("has 3"), "{e}");
}
