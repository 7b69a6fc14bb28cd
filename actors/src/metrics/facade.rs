//! Hands the metrics to the `metrics` facade, and so to whatever exporter the program has installed.

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, gauge};

use super::{Histogram, Kind, Metrics, TABLE, Value};

impl Metrics {
    /// Sets all metrics in the recorder of the `metrics` facade to these values, each with `labels` besides
    /// its own. Call it when they are wanted: before a scrape is answered, or every few seconds for an
    /// exporter that pushes. Between calls it costs nothing.
    ///
    /// Nodes of one process need labels that tell them apart, or they overwrite each other's values. A label
    /// must not have a key of the metric's own.
    ///
    /// A histogram becomes what Prometheus makes of one: counters `.._bucket` with the label `le`, a counter
    /// `.._count`, and `.._sum`, which is a gauge because counters of the facade are whole numbers.
    pub fn record(&self, labels: &[(&str, &str)]) {
        let common: Vec<Label> =
            labels.iter().map(|(k, v)| Label::new(k.to_string(), v.to_string())).collect();
        for sample in self.samples() {
            let mut labels = common.clone();
            labels.extend(sample.labels.into_iter().map(|(key, value)| Label::new(key, value)));
            match sample.value {
                Value::Counter(n) => counter!(sample.name, labels).absolute(n),
                Value::Gauge(n) => gauge!(sample.name, labels).set(n),
                Value::Histogram(histogram) => buckets(sample.name, &labels, &histogram),
            }
        }
    }

    /// Tells the recorder of the `metrics` facade what each metric means, and its unit. Once is enough.
    pub fn describe() {
        for metric in TABLE {
            let (name, help) = (metric.name, metric.help);
            let unit = match metric.unit {
                "seconds" => Unit::Seconds,
                "bytes" => Unit::Bytes,
                _ => Unit::Count,
            };
            match metric.kind {
                Kind::Counter => describe_counter!(name, unit, help),
                Kind::Gauge => describe_gauge!(name, unit, help),
                Kind::Histogram => {
                    describe_counter!(format!("{name}_bucket"), help);
                    describe_counter!(format!("{name}_count"), help);
                    describe_gauge!(format!("{name}_sum"), unit, help);
                }
            }
        }
    }
}

fn buckets(name: &'static str, labels: &[Label], histogram: &Histogram) {
    let mut below = 0;
    let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    for (bound, n) in bounds.zip(&histogram.counts) {
        below += n;
        let mut labels = labels.to_vec();
        labels.push(Label::new("le", bound));
        counter!(format!("{name}_bucket"), labels).absolute(below);
    }
    counter!(format!("{name}_count"), labels.to_vec()).absolute(below);
    gauge!(format!("{name}_sum"), labels.to_vec()).set(histogram.sum);
}
