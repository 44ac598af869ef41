/** What vitest's JSON and pytest's JUnit XML say, in one shape. */
import { relative } from 'node:path';

export interface SuiteReport {
  passed: number;
  failed: number;
  /** `<file> > <test>` of every test that did not run. */
  skips: string[];
}

interface VitestJson {
  testResults: {
    name: string;
    status: string;
    assertionResults: { status: string; fullName: string }[];
  }[];
}

/** A file that could not be loaded, or whose hooks failed, counts as one failure; its tests are not skips. */
export function readVitestReport(json: string, root: string): SuiteReport {
  const report: SuiteReport = { passed: 0, failed: 0, skips: [] };
  for (const { name, status, assertionResults } of (JSON.parse(json) as VitestJson).testResults) {
    const failed = assertionResults.filter((test) => test.status === 'failed').length;
    const skipped = assertionResults.filter((test) => !['passed', 'failed'].includes(test.status));
    report.passed += assertionResults.filter((test) => test.status === 'passed').length;
    const fileFailed = status === 'failed' && failed === 0;
    report.failed += fileFailed ? 1 : failed;
    if (!fileFailed) report.skips.push(...skipped.map((test) => `${relative(root, name)} > ${test.fullName}`));
  }
  return report;
}

/** One `testcase` element each; its children say how it ended. Errors in fixtures and collection are failures. */
export function readJunitReport(xml: string): SuiteReport {
  const report: SuiteReport = { passed: 0, failed: 0, skips: [] };
  for (const [, attributes = '', body = ''] of xml.matchAll(/<testcase\b([^>]*?)(?:\/>|>([\s\S]*?)<\/testcase>)/g)) {
    if (/<(failure|error)\b/.test(body)) report.failed += 1;
    else if (/<skipped\b/.test(body))
      report.skips.push(`${attribute(attributes, 'classname')} > ${attribute(attributes, 'name')}`);
    else report.passed += 1;
  }
  return report;
}

const attribute = (attributes: string, name: string): string =>
  (new RegExp(`\\b${name}="([^"]*)"`).exec(attributes)?.[1] ?? '')
    .replaceAll('&quot;', '"')
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&amp;', '&');
