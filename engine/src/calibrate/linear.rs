//! Just enough linear algebra for a dozen coefficients: symmetric positive-definite matrices by Cholesky.

use super::coefficients::COUNT;

/// A vector of one number a coefficient.
pub(crate) type Vector = [f64; COUNT];

/// A square matrix, by rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Matrix(pub(crate) [[f64; COUNT]; COUNT]);

impl Matrix {
    pub(crate) const ZERO: Self = Self([[0.0; COUNT]; COUNT]);

    pub(crate) fn diagonal(d: &Vector) -> Self {
        let mut m = Self::ZERO;
        for (i, v) in d.iter().enumerate() {
            m.0[i][i] = *v;
        }
        m
    }

    /// Adds `w · v vᵀ`.
    pub(crate) fn add_outer(&mut self, v: &Vector, w: f64) {
        for (row, a) in self.0.iter_mut().zip(v) {
            if *a != 0.0 {
                row.iter_mut().zip(v).for_each(|(m, b)| *m += w * a * b);
            }
        }
    }

    pub(crate) fn plus(&self, other: &Self, scale: f64) -> Self {
        let mut m = *self;
        for (row, o) in m.0.iter_mut().zip(&other.0) {
            row.iter_mut().zip(o).for_each(|(a, b)| *a += scale * b);
        }
        m
    }

    pub(crate) fn times(&self, v: &Vector) -> Vector {
        let mut out = [0.0; COUNT];
        for (o, row) in out.iter_mut().zip(&self.0) {
            *o = dot(row, v);
        }
        out
    }

    /// `vᵀ M v`.
    pub(crate) fn quadratic(&self, v: &Vector) -> f64 {
        dot(v, &self.times(v))
    }

    /// Lower triangle L with `L Lᵀ = M`; `None` unless M is positive definite.
    fn cholesky(&self) -> Option<Self> {
        let mut l = Self::ZERO;
        for i in 0..COUNT {
            for j in 0..=i {
                let sum: f64 = (0..j).map(|k| l.0[i][k] * l.0[j][k]).sum();
                let rest = self.0[i][j] - sum;
                if i == j {
                    // NaN must fail too.
                    if !(rest.is_finite() && rest > 0.0) {
                        return None;
                    }
                    l.0[i][i] = rest.sqrt();
                } else {
                    l.0[i][j] = rest / l.0[j][j];
                }
            }
        }
        Some(l)
    }

    /// `x` with `M x = b`; `None` unless M is positive definite.
    pub(crate) fn solve(&self, b: &Vector) -> Option<Vector> {
        Some(self.cholesky()?.back_substitute(b))
    }

    fn back_substitute(&self, b: &Vector) -> Vector {
        let mut y = *b;
        for i in 0..COUNT {
            let sum: f64 = (0..i).map(|k| self.0[i][k] * y[k]).sum();
            y[i] = (y[i] - sum) / self.0[i][i];
        }
        for i in (0..COUNT).rev() {
            let sum: f64 = (i + 1..COUNT).map(|k| self.0[k][i] * y[k]).sum();
            y[i] = (y[i] - sum) / self.0[i][i];
        }
        y
    }

    /// The inverse; `None` unless M is positive definite.
    pub(crate) fn inverse(&self) -> Option<Self> {
        let l = self.cholesky()?;
        let mut inverse = Self::ZERO;
        for i in 0..COUNT {
            let mut unit = [0.0; COUNT];
            unit[i] = 1.0;
            let column = l.back_substitute(&unit);
            for (row, c) in inverse.0.iter_mut().zip(column) {
                row[i] = c;
            }
        }
        Some(inverse)
    }
}

pub(crate) fn dot(a: &Vector, b: &Vector) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Matrix {
        let mut m = Matrix::diagonal(&[2.0; COUNT]);
        for k in 0..4 {
            let mut v = [0.0; COUNT];
            for (i, x) in v.iter_mut().enumerate() {
                *x = ((i * 7 + k * 3) % 5) as f64 - 1.5;
            }
            m.add_outer(&v, 0.7);
        }
        m
    }

    #[test]
    fn solves_what_it_multiplies() {
        let m = example();
        let mut x = [0.0; COUNT];
        x.iter_mut().enumerate().for_each(|(i, v)| *v = i as f64 - 3.0);
        let back = m.solve(&m.times(&x)).unwrap();
        assert!(x.iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-9));
        let inverse = m.inverse().unwrap();
        let also = inverse.times(&m.times(&x));
        assert!(x.iter().zip(also).all(|(a, b)| (a - b).abs() < 1e-9));
    }

    #[test]
    fn refuses_what_is_not_positive_definite() {
        let mut m = example();
        m.0[3][3] = -1.0;
        assert!(m.inverse().is_none());
        m.0[3][3] = f64::NAN;
        assert!(m.solve(&[1.0; COUNT]).is_none());
    }
}
