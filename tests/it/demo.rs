//! `outgate demo` judges itself; here it runs as a whole, at three widths.

use std::time::{Duration, Instant};

use super::program::{outgate, output};

#[test]
fn every_scene_is_as_it_must_be_and_fits_the_terminal() {
    let run = |width: usize| {
        let begun = Instant::now();
        let shown = output(&mut outgate(&["demo", "--width", &width.to_string()]));
        (width, shown, begun.elapsed())
    };
    let runs: Vec<_> = [60, 80, 110].map(|width| std::thread::spawn(move || run(width))).into();
    for thread in runs {
        let (width, shown, took) = thread.join().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.status.success(), "{text}\n{}", String::from_utf8_lossy(&shown.stderr));
        assert!(text.contains("16 scenes, all as they must be."), "{text}");
        for part in ["First act", "Second act", "outgate.retry.reason=throttle", "error.type=breaker_open"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{2717}') && !text.contains('\x1b'), "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(width), "{widest:?} of {width}: {text}");
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
}
