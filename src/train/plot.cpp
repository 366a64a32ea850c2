#include "train/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace tinyllama {
namespace {

constexpr double kWidth = 640, kHeight = 300, kLeft = 64, kRight = 24, kTop = 12, kBottom = 30;
constexpr size_t kMaxPoints = 500;  // of a line
constexpr int kColours = 8;

constexpr std::string_view kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Training</title>
<style>
:root{--back:#fff;--ink:#1c2024;--soft:#667;--grid:#e4e6ea;
--c0:#2563c9;--c1:#c2410c;--c2:#15803d;--c3:#9333b8;--c4:#b45309;--c5:#0e7490;--c6:#be185d;--c7:#57606a}
@media(prefers-color-scheme:dark){:root{--back:#14171a;--ink:#e6e8ea;--soft:#9aa3ad;--grid:#2b3036;
--c0:#6ea8fe;--c1:#fb923c;--c2:#4ade80;--c3:#d8a1f5;--c4:#fbbf24;--c5:#5bd3ea;--c6:#f472b6;--c7:#adb5bd}}
body{margin:24px;background:var(--back);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
h1{font-size:20px}h2{font-size:15px;margin:0 0 4px}
table{border-collapse:collapse;margin-bottom:24px;display:block;overflow-x:auto}
th,td{padding:3px 14px 3px 0;text-align:right}th{color:var(--soft);font-weight:normal}
th:first-child,td:first-child{text-align:left}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:24px}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.grid{stroke:var(--grid)}.line{fill:none;stroke-width:1.6;stroke-linejoin:round}
.band{stroke:none;opacity:.18}.validation{stroke-dasharray:5 4}
.readout{color:var(--soft);min-height:1.45em;font-size:13px}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px}
</style></head><body>
)";

// Shows the nearest points of all lines under the mouse, read back from the lines themselves.
constexpr std::string_view kScript = R"(<script>
for (const svg of document.querySelectorAll('svg')) {
  const out = svg.nextElementSibling, d = svg.dataset, view = svg.viewBox.baseVal;
  const value = (at, low, high, from, to) => +low + (at - from) / (to - from) * (high - low);
  const lines = [...svg.querySelectorAll('.line')].map(line => ({name: line.dataset.name,
    points: line.getAttribute('points').split(' ').map(p => p.split(',').map(Number))}));
  svg.addEventListener('mousemove', event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * view.width;
    const best = {};
    for (const {name, points} of lines) for (const p of points)
      if (!best[name] || Math.abs(p[0] - x) < Math.abs(best[name][0] - x)) best[name] = p;
    out.textContent = Object.entries(best).map(([name, p]) => name + ': ' +
      value(p[1], d.low, d.high, d.bottom, d.top).toPrecision(4) + ' at step ' +
      Math.round(value(p[0], d.first, d.last, d.left, d.right))).join('   ');
  });
  svg.addEventListener('mouseleave', () => out.textContent = '');
}
</script>
)";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

struct Point {
  double step, mean, low, high;
};
using Line = std::vector<Point>;

// The finite values of a run in lines without gaps, each thinned to the means of equal stretches.
std::vector<Line> lines_of(const std::vector<StepMetrics>& steps,
                           const std::function<double(const StepMetrics&)>& value) {
  const size_t stretch = std::max<size_t>(1, (steps.size() + kMaxPoints - 1) / kMaxPoints);
  std::vector<Line> lines(1);
  for (size_t begin = 0; begin < steps.size(); begin += stretch) {
    Point point{0, 0, std::numeric_limits<double>::max(), std::numeric_limits<double>::lowest()};
    int n = 0;
    for (size_t i = begin; i < std::min(begin + stretch, steps.size()); i++) {
      const double v = value(steps[i]);
      if (!std::isfinite(v)) continue;
      n++;
      point.step += (static_cast<double>(steps[i].step) - point.step) / n;
      point.mean += (v - point.mean) / n;
      point.low = std::min(point.low, v), point.high = std::max(point.high, v);
    }
    if (n > 0) {
      lines.back().push_back(point);
    } else if (!lines.back().empty()) {
      lines.emplace_back();
    }
  }
  if (lines.back().empty()) lines.pop_back();
  return lines;
}

// As lines_of() of what is measured now and then: one line through what there is.
std::vector<Line> validation_line(const std::vector<StepMetrics>& steps) {
  std::vector<StepMetrics> measured;
  for (const StepMetrics& m : steps)
    if (m.validation_loss && std::isfinite(*m.validation_loss)) measured.push_back(m);
  return lines_of(measured, [](const StepMetrics& m) { return *m.validation_loss; });
}

struct Curve {
  std::string name;
  int colour;
  bool validation;
  std::vector<Line> lines;
};

// A range of values, and where it lies in the picture.
struct Axis {
  double low, high, from, to;
  double at(double value) const { return from + (value - low) / (high - low) * (to - from); }

  // 1, 2 or 5 times a power of ten, about `n` of them in the range.
  double tick(int n) const {
    const double raw = (high - low) / n, power = std::pow(10, std::floor(std::log10(raw)));
    for (const double factor : {1.0, 2.0, 5.0})
      if (raw <= factor * power) return factor * power;
    return 10 * power;
  }
};

// The range of all curves; a range of its own where they are empty or flat.
std::pair<Axis, Axis> axes_of(const std::vector<Curve>& curves) {
  constexpr double kMost = std::numeric_limits<double>::max();
  Axis x{kMost, -kMost, kLeft, kWidth - kRight}, y{kMost, -kMost, kHeight - kBottom, kTop};
  for (const Curve& curve : curves)
    for (const Line& line : curve.lines)
      for (const Point& p : line) {
        x.low = std::min(x.low, p.step), x.high = std::max(x.high, p.step);
        y.low = std::min(y.low, p.low), y.high = std::max(y.high, p.high);
      }
  for (Axis* axis : {&x, &y}) {
    if (axis->low > axis->high) axis->low = 0, axis->high = 1;
    const double margin = axis == &y ? 0.04 * (axis->high - axis->low) : 0;
    axis->low -= margin, axis->high += margin;
    const double least = std::max(std::abs(axis->high) * 1e-6, 1e-12);
    if (axis->high - axis->low < least) {
      const double half = axis == &x ? 0.5 : std::max(std::abs(axis->high) / 10, least);
      axis->low -= half, axis->high += half;
    }
  }
  return {x, y};
}

std::string grid(const Axis& x, const Axis& y) {
  std::string svg;
  for (double tick = y.tick(5), v = std::ceil(y.low / tick) * tick; v <= y.high; v += tick) {
    const double shown = std::abs(v) < tick / 1e6 ? 0 : v;
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.4g}</text>\n",
        x.from, x.to, y.at(v), y.at(v), x.from - 6, y.at(v) + 4, shown);
  }
  const double tick = std::max(1.0, x.tick(6));
  for (double v = std::ceil(x.low / tick) * tick; v <= x.high; v += tick)
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.0f}</text>\n",
                       x.at(v), kHeight - 10, v);
  return svg;
}

std::string drawn(const Curve& curve, const Line& line, const Axis& x, const Axis& y) {
  std::string points, above, below;
  bool thinned = false;
  for (const Point& p : line) {
    points += fmt::format("{}{:.1f},{:.1f}", points.empty() ? "" : " ", x.at(p.step), y.at(p.mean));
    above += fmt::format("{:.1f},{:.1f} ", x.at(p.step), y.at(p.high));
    below.insert(0, fmt::format("{:.1f},{:.1f} ", x.at(p.step), y.at(p.low)));
    thinned |= p.low < p.high;
  }
  std::string svg;
  if (thinned)
    svg += fmt::format("<polygon class=\"band\" fill=\"var(--c{})\" points=\"{}{}\"/>\n",
                       curve.colour, above, below);
  // A lone point is a line of no length, which round ends make visible.
  if (line.size() == 1) points += " " + points;
  return svg + fmt::format(
                   "<polyline class=\"line{}\" data-name=\"{}\" stroke=\"var(--c{})\" "
                   "stroke-linecap=\"round\" points=\"{}\"/>\n",
                   curve.validation ? " validation" : "", escaped(curve.name), curve.colour,
                   points);
}

std::string chart(std::string_view title, const std::vector<Curve>& curves) {
  const auto [x, y] = axes_of(curves);
  std::string html = fmt::format(
      "<section><h2>{0}</h2><svg viewBox=\"0 0 {1} {2}\" role=\"img\" aria-label=\"{0}\" "
      "data-first=\"{3}\" data-last=\"{4}\" data-left=\"{5}\" data-right=\"{6}\" data-low=\"{7}\" "
      "data-high=\"{8}\" data-bottom=\"{9}\" data-top=\"{10}\">\n",
      title, kWidth, kHeight, x.low, x.high, x.from, x.to, y.low, y.high, y.from, y.to);
  html += grid(x, y);
  for (const Curve& curve : curves)
    for (const Line& line : curve.lines) html += drawn(curve, line, x, y);
  return html + "</svg><div class=\"readout\"></div></section>\n";
}

std::string shown(double value) {
  return std::isfinite(value) ? fmt::format("{:.4g}", value) : "–";
}

std::string table(const std::vector<PlottedRun>& runs) {
  std::string html =
      "<table><tr><th>run</th><th>steps</th><th>resumed</th><th>loss</th><th>validation</th>"
      "<th>tokens/s</th></tr>\n";
  for (size_t i = 0; i < runs.size(); i++) {
    const auto& steps = runs[i].steps;
    const StepMetrics last = steps.empty() ? StepMetrics{0, NAN, NAN, NAN, NAN, 0} : steps.back();
    double validation = NAN;
    for (const StepMetrics& m : steps) validation = m.validation_loss.value_or(validation);
    html += fmt::format(
        "<tr><td><span class=\"key\" style=\"background:var(--c{})\"></span>{}</td><td>{}</td>"
        "<td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        i % kColours, escaped(runs[i].name), last.step, last.run, shown(last.loss),
        shown(validation), shown(last.tokens_per_s));
  }
  return html + "</table>\n";
}

}  // namespace

std::string plot_page(const std::vector<PlottedRun>& runs) {
  struct Quantity {
    const char* title;
    double StepMetrics::*value;
  };
  constexpr Quantity kQuantities[] = {{"Loss (dashed: validation)", &StepMetrics::loss},
                                      {"Learning rate", &StepMetrics::lr},
                                      {"Gradient norm", &StepMetrics::grad_norm},
                                      {"Tokens a second", &StepMetrics::tokens_per_s}};
  std::string html(kHead);
  html += "<h1>Training</h1>\n" + table(runs) + "<div class=\"charts\">\n";
  for (const Quantity& quantity : kQuantities) {
    std::vector<Curve> curves;
    for (size_t i = 0; i < runs.size(); i++) {
      const int colour = static_cast<int>(i % kColours);
      const auto value = [&](const StepMetrics& m) { return m.*quantity.value; };
      curves.push_back({runs[i].name, colour, false, lines_of(runs[i].steps, value)});
      if (quantity.value == &StepMetrics::loss)
        curves.push_back(
            {runs[i].name + " (validation)", colour, true, validation_line(runs[i].steps)});
    }
    html += chart(quantity.title, curves);
  }
  html += "</div>\n";
  return html.append(kScript) + "</body></html>\n";
}

}  // namespace tinyllama
