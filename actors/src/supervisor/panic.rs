//! Catching a panic, with its message and place.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

#[cfg(panic = "abort")]
compile_error!("supervision stands on unwinding: set panic = \"unwind\" in the profile");

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes the place of each panic of this process, and leaves the rest to the hook that was there.
pub(super) fn note_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string);
            // Nothing may panic here: the process would abort.
            let _ = PLACE.try_with(|last| last.try_borrow_mut().map(|mut last| *last = place));
            before(info);
        }));
    });
}

/// Runs `f`; a panic becomes its message and place.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = message(&*payload);
        // A payload of the user's may panic when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        match PLACE.try_with(|last| last.try_borrow_mut().ok().and_then(|mut last| last.take())) {
            Ok(Some(place)) => format!("{text} at {place}"),
            _ => text,
        }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    /// What a log line can bear of a user's text.
    const MAX: usize = 500;
    let text =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(|s| &**s));
    text.unwrap_or("a panic without a text").chars().take(MAX).collect()
}
