//! Row-major blocks of elements: padding one into a larger and cutting one out of it.

/// Copies what two blocks have in common, counted from their first element: into a larger block this pads, out of
/// a larger one it cuts. Both have as many dimensions; `size` is that of an element in bytes.
pub fn copy_common(from: &[u8], from_shape: &[i64], to: &mut [u8], to_shape: &[i64], size: usize) {
    let ([from_first, from_rest @ ..], [to_first, to_rest @ ..]) = (from_shape, to_shape) else {
        to.copy_from_slice(from);
        return;
    };
    let (from_step, to_step) = (size * elements(from_rest), size * elements(to_rest));
    let common = extent(*from_first.min(to_first));
    if from_rest == to_rest {
        let bytes = common * from_step;
        to[..bytes].copy_from_slice(&from[..bytes]);
        return;
    }
    for index in 0..common {
        copy_common(
            &from[index * from_step..][..from_step],
            from_rest,
            &mut to[index * to_step..][..to_step],
            to_rest,
            size,
        );
    }
}

/// The number of elements of a block.
pub fn elements(shape: &[i64]) -> usize {
    shape.iter().map(|size| extent(*size)).product()
}

/// A dimension's size as an index. Shapes were checked when their tensors were made, so none is negative.
pub fn extent(size: i64) -> usize {
    usize::try_from(size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pads_and_cuts_every_dimension() {
        let small: Vec<u8> = (1..=6).collect();
        let mut large = vec![0; 2 * 4 * 2];
        copy_common(&small, &[1, 3, 2], &mut large, &[2, 4, 2], 1);
        assert_eq!(large, [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

        let mut wide = vec![9; 2 * 4];
        copy_common(&[1, 2, 3, 4], &[2, 2], &mut wide, &[2, 4], 1);
        assert_eq!(wide, [1, 2, 9, 9, 3, 4, 9, 9]);

        let mut cut = vec![0; 4];
        copy_common(&wide, &[2, 4], &mut cut, &[2, 2], 1);
        assert_eq!(cut, [1, 2, 3, 4]);
    }

    #[test]
    fn elements_keep_their_bytes_together() {
        let mut padded = vec![0; 2 * 3 * 2];
        copy_common(&[1, 1, 2, 2], &[2, 1], &mut padded, &[2, 3], 2);
        assert_eq!(padded, [1, 1, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn a_scalar_is_one_element() {
        assert_eq!(elements(&[]), 1);
        let mut to = [0, 0];
        copy_common(&[7, 8], &[], &mut to, &[], 2);
        assert_eq!(to, [7, 8]);
    }
}
