//! Decoded images kept for the epochs to come, within a budget of memory. In: the pixels of a file. Out: the same pixels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::picture::Picture;

/// Images by their paths, shared by the lists of a data set.
#[derive(Debug)]
pub struct ImageCache {
    /// Bytes of pixels that may be kept.
    budget: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: u64,
    images: HashMap<Box<str>, Arc<Picture>>,
}

impl ImageCache {
    /// An empty one, which keeps at most `budget` bytes of pixels.
    pub fn new(budget: u64) -> Self {
        Self { budget, kept: Mutex::default() }
    }

    /// Images that are kept, and the bytes of their pixels.
    pub fn filled(&self) -> (usize, u64) {
        let kept = self.kept();
        (kept.images.len(), kept.bytes)
    }

    pub(super) fn get(&self, path: &str) -> Option<Arc<Picture>> {
        self.kept().images.get(path).cloned()
    }

    /// Keeps an image where there is room for it. None is dropped for another: an epoch takes each image once, in an order of
    /// its own, so that no image is needed sooner than another.
    pub(super) fn offer(&self, path: &str, (height, width): (i64, i64), pixels: &[u8]) {
        let fits = |kept: &Kept| {
            let bytes = kept.bytes.saturating_add(pixels.len() as u64);
            (bytes <= self.budget && !kept.images.contains_key(path)).then_some(bytes)
        };
        if fits(&self.kept()).is_none() {
            return;
        }
        // Other threads may look while the pixels are copied.
        let picture = Arc::new(Picture { height, width, pixels: pixels.to_vec() });
        let mut kept = self.kept();
        if let Some(bytes) = fits(&kept) {
            kept.bytes = bytes;
            kept.images.insert(path.into(), picture);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_kept_and_no_image_counts_twice() {
        let cache = ImageCache::new(10);
        cache.offer("a", (1, 2), &[1; 6]);
        cache.offer("a", (1, 2), &[1; 6]);
        cache.offer("b", (1, 2), &[2; 6]);
        assert_eq!(cache.filled(), (1, 6));
        cache.offer("c", (1, 1), &[3; 3]);
        assert_eq!(cache.filled(), (2, 9));
        assert_eq!(cache.get("c").unwrap().pixels, [3; 3]);
        assert!(cache.get("b").is_none());
    }
}
